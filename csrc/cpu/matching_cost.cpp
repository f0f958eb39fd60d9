// matching_cost: the sums over the mask grid from which every target's cost of every query follows.
//   in      logits of all queries at some cells   the targets that cover each cell
//   out     sums [2 T + 2, queries] float64: for each target sum y (pos - neg), then for each
//           sum y s, then sum neg and sum s
//   maths   core/focal.hpp; one exponential, reciprocal and logarithm an element
//   plan    a block of queries at a time, one vector of them per cell: logits that lie query by
//           query are turned around in small tiles. The cells are taken in runs that the same
//           targets cover: a run is summed in registers and then added to the rows of its
//           targets, so there is no product with 0/1 masks. Tiles of 256 cells are summed in
//           float32, the tiles in float64, in order: the same bits with any number of threads
//   bounds  kChunks times the sums are kept, then added in order
//   NaN     sum neg is not finite where a logit is not: it reaches the costs of all targets

#include "cpu/matching_cost.hpp"

#include <algorithm>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include "core/arena.hpp"
#include "core/focal.hpp"
#include "cpu/float_lanes.hpp"
#include "cpu/parallel.hpp"

namespace maskformer::cpu {
namespace {

constexpr int64_t kTile = 256;   // cells whose sums stay in float32
constexpr int64_t kTurned = 64;  // cells that are turned around at a time
constexpr int64_t kCacheLine = 64;
constexpr int64_t kChunks = 16;             // at most, whose sums are kept until the end,
constexpr int64_t kFewestChunks = 4;        // and at least: threads share them
constexpr int64_t kChunksBytes = 32 << 20;  // beyond it there are fewer

// One thread's memory, for a block of queries.
struct Scratch {
  float* lines;   // [kQueryBlock, kTurned] logits as float32
  float* turned;  // [kTurned, kQueryBlock]
  float* sums;    // [rows, kQueryBlock]
};

int64_t padded(const MatchingSums& p) {
  return (p.queries + kQueryBlock - 1) / kQueryBlock * kQueryBlock;
}

int64_t rows(const MatchingSums& p) { return 2 * p.targets + 2; }

// A function of the shape, not of the number of threads.
int64_t most_chunks(const MatchingSums& p) {
  const int64_t bytes = rows(p) * padded(p) * static_cast<int64_t>(sizeof(double));
  return std::clamp(kChunksBytes / bytes, kFewestChunks, kChunks);
}

int64_t chunk_cells(const MatchingSums& p) {
  const int64_t tiles = (p.cells + kTile - 1) / kTile;
  return (tiles + most_chunks(p) - 1) / most_chunks(p) * kTile;
}

double* take_partial(const MatchingSums& p, Arena& arena) {
  return arena.take<double>(most_chunks(p) * rows(p) * padded(p));
}

Scratch take_scratch(const MatchingSums& p, Arena& arena) {
  Scratch s{};
  s.lines = arena.take<float>(kQueryBlock * kTurned);
  s.turned = arena.take<float>(kTurned * kQueryBlock);
  s.sums = arena.take<float>(rows(p) * kQueryBlock);
  return s;
}

struct RunSums {
  Register pos, neg, sigmoid;  // pos and neg without their factors alpha and 1 - alpha
};

// Sums over `cells` cells of a register of queries. A logit of -infinity makes sum neg NaN.
template <bool Square>
RunSums sum_run(const float* logits, int64_t step, int64_t cells, float gamma) {
  RunSums sum = {};
  for (int64_t cell = 0; cell < cells; ++cell, logits += step) {
    const Register x = load_register(logits);
    const Register e = exp_of_negative(-magnitude(x)), log = log_one_plus(e);
    const Register larger = 1.0f / (1.0f + e), smaller = e * larger;
    const Register s = x < 0.0f ? smaller : larger, rest = x < 0.0f ? larger : smaller;
    const Register negative_part = x < 0.0f ? x : Register{};
    const Register above = (x - negative_part) + log, below = log - negative_part;
    sum.pos += focal_power<Square>(rest, above, gamma) * below;
    sum.neg += focal_power<Square>(s, below, gamma) * above;
    sum.sigmoid += s;
  }
  return sum;
}

// Adds the cells [begin, end), of which run `run` is the first, to s.sums; `logits` are those of
// `queries` queries at `begin`, `step` apart. Returns the run that `end` belongs to.
int64_t visit(const MatchingSums& p, const float* logits, int64_t step, int64_t queries,
              int64_t begin, int64_t end, int64_t run, const Scratch& s) {
  const TargetRuns& runs = p.runs;
  const auto sum = p.gamma == kSquare ? sum_run<true> : sum_run<false>;
  float* neg = s.sums + 2 * p.targets * kQueryBlock;
  float* sigmoid = neg + kQueryBlock;
  for (int64_t cell = begin; cell < end; ++run) {
    const int64_t stop = std::min<int64_t>(runs.cell[run + 1], end), cells = stop - cell;
    const float* source = logits + (cell - begin) * step;
    const int32_t first = runs.first[run], last = runs.first[run + 1];
    cell = stop;
    if (p.ignore_void && first == last) continue;
    for (int64_t q = 0; q < queries; q += kRegister) {
      const RunSums of_run = sum(source + q, step, cells, p.gamma);
      const Register of_neg = (1.0f - p.alpha) * of_run.neg, of_pos = p.alpha * of_run.pos;
      add_to(neg + q, of_neg);
      add_to(sigmoid + q, of_run.sigmoid);
      for (int32_t i = first; i < last; ++i) {
        float* row = s.sums + runs.target[i] * kQueryBlock + q;
        add_to(row, of_pos - of_neg);
        add_to(row + p.targets * kQueryBlock, of_run.sigmoid);
      }
    }
  }
  return runs.cell[run] > end ? run - 1 : run;
}

// Asks for the bytes that come next in a query's row: the rows are too far apart, and too many, for
// the processor to guess.
void prefetch(const std::byte* bytes, int64_t size) {
  for (int64_t i = 0; i < size; i += kCacheLine) __builtin_prefetch(bytes + i, 0, 2);
}

// to[cell][q] = from[q][cell] for four queries and four cells.
void turn_four(const float* from, float* to) {
#ifdef __SSE__
  __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + kTurned);
  __m128 c = _mm_loadu_ps(from + 2 * kTurned), d = _mm_loadu_ps(from + 3 * kTurned);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(to, a);
  _mm_storeu_ps(to + kQueryBlock, b);
  _mm_storeu_ps(to + 2 * kQueryBlock, c);
  _mm_storeu_ps(to + 3 * kQueryBlock, d);
#else
  for (int64_t q = 0; q < 4; ++q) {
    for (int64_t cell = 0; cell < 4; ++cell) to[cell * kQueryBlock + q] = from[q * kTurned + cell];
  }
#endif
}

// The logits of the cells [begin, end) of the block of queries that starts with `query`, turned
// around into s.turned [end - begin, kQueryBlock].
void turn(const MatchingSums& p, int64_t query, int64_t begin, int64_t end, const Scratch& s) {
  const int64_t width = end - begin, bytes = size_of(p.type);
  for (int64_t q = 0; q < std::min(kQueryBlock, p.queries - query); ++q) {
    const std::byte* line =
        static_cast<const std::byte*>(p.logits) + ((query + q) * p.stride + begin) * bytes;
    prefetch(line + kTurned * bytes, kTurned * bytes);
    to_float32(line, p.type, width, s.lines + q * kTurned);
  }
  for (int64_t q = 0; q < kQueryBlock; q += 4) {
    for (int64_t cell = 0; cell < width; cell += 4) {
      turn_four(s.lines + q * kTurned + cell, s.turned + cell * kQueryBlock + q);
    }
  }
}

// Adds the sums of one tile to `sums` [rows, padded].
void visit_tile(const MatchingSums& p, int64_t begin, int64_t end, const Scratch& s, double* sums) {
  const int32_t* first = p.runs.cell;
  const int64_t first_run =
      std::upper_bound(first, first + p.runs.number, p.start + begin) - first - 1;
  for (int64_t query = 0; query < padded(p); query += kQueryBlock) {
    std::fill_n(s.sums, rows(p) * kQueryBlock, 0.0f);
    const int64_t block = std::min(kQueryBlock, p.queries - query);
    int64_t run = first_run;
    for (int64_t cell = begin; cell < end; cell += kTurned) {
      const int64_t last = std::min(cell + kTurned, end);
      const float* logits = s.turned;
      if (p.cells_first) {
        logits = static_cast<const float*>(p.logits) + cell * p.stride + query;
      } else {
        turn(p, query, cell, last, s);
      }
      const int64_t step = p.cells_first ? p.stride : kQueryBlock;
      run = visit(p, logits, step, block, p.start + cell, p.start + last, run, s);
    }
    for (int64_t row = 0; row < rows(p); ++row) {
      const float* __restrict from = s.sums + row * kQueryBlock;
      double* __restrict to = sums + row * padded(p) + query;
      for (int64_t q = 0; q < kQueryBlock; ++q) to[q] += static_cast<double>(from[q]);
    }
  }
}

// Writes the sums of one chunk to `sums` [rows, padded].
void visit_chunk(const MatchingSums& p, int64_t chunk, const Scratch& s, double* sums) {
  std::fill_n(sums, rows(p) * padded(p), 0.0);
  std::fill_n(s.lines, kQueryBlock * kTurned, 0.0f);
  const int64_t begin = chunk * chunk_cells(p), end = std::min(begin + chunk_cells(p), p.cells);
  for (int64_t cell = begin; cell < end; cell += kTile) {
    visit_tile(p, cell, std::min(cell + kTile, end), s, sums);
  }
}

// Adds row `row` of the chunks' sums [chunks, rows, padded].
void reduce(const MatchingSums& p, const double* partial, int64_t chunks, int64_t row) {
  double* __restrict sums = p.sums + row * p.queries;
  for (int64_t n = 0; n < chunks; ++n) {
    const double* __restrict part = partial + (n * rows(p) + row) * padded(p);
    for (int64_t q = 0; q < p.queries; ++q) sums[q] += part[q];
  }
}

// The costs of one target of one image in one layer.
void cost_of_target(const MatchingCost& p, int64_t layer, int64_t image, int64_t target) {
  const int64_t step = p.layers * p.queries;
  const double* sums = p.sums + image * (2 * p.targets + 2) * step + layer * p.queries;
  const double *term = sums + target * step, *overlap = term + p.targets * step;
  const double *neg = sums + 2 * p.targets * step, *sigmoid = neg + step;
  const double* area = p.area + image * (p.targets + 1);
  const double counted = p.ignore_void ? area[p.targets] : static_cast<double>(p.cells);
  const double pixels = std::max(counted, 1.0);
  const float* probs = p.probs + (layer * p.images + image) * p.queries * p.classes +
                       p.labels[image * p.targets + target];
  float* cost = p.cost + ((layer * p.images + image) * p.targets + target) * p.queries;
  for (int64_t q = 0; q < p.queries; ++q) {
    const double focal = (term[q] + neg[q]) / pixels;
    const double dice = 1.0 - (2.0 * overlap[q] + 1.0) / (sigmoid[q] + area[target] + 1.0);
    const double prob = static_cast<double>(probs[q * p.classes]);
    cost[q] =
        static_cast<float>(p.mask_weight * focal + p.dice_weight * dice - p.class_weight * prob);
  }
}

}  // namespace

template <InstructionSet Set>
int64_t matching_sums_workspace(const MatchingSums& problem, int threads) {
  Arena shared(nullptr), own(nullptr);
  take_partial(problem, shared);
  take_scratch(problem, own);
  return shared.used() + threads * own.used();
}

template <InstructionSet Set>
void matching_sums(const MatchingSums& p, std::byte* workspace, int threads) {
  Arena shared(workspace), sizes(nullptr);
  double* partial = take_partial(p, shared);
  take_scratch(p, sizes);
  const int64_t chunks = p.cells == 0 ? 0 : (p.cells - 1) / chunk_cells(p) + 1;
  parallel_for(chunks, threads, [&](int64_t chunk, int thread) {
    Arena own(workspace + shared.used() + thread * sizes.used());
    visit_chunk(p, chunk, take_scratch(p, own), partial + chunk * rows(p) * padded(p));
  });
  parallel_for(rows(p), threads, [&](int64_t row, int) { reduce(p, partial, chunks, row); });
}

template <InstructionSet Set>
void matching_cost(const MatchingCost& p) {
  for (int64_t layer = 0; layer < p.layers; ++layer) {
    for (int64_t image = 0; image < p.images; ++image) {
      for (int64_t target = 0; target < p.targets; ++target) {
        if (target < p.num_targets[image]) {
          cost_of_target(p, layer, image, target);
        } else {
          const int64_t row = (layer * p.images + image) * p.targets + target;
          std::fill_n(p.cost + row * p.queries, p.queries, 0.0f);
        }
      }
    }
  }
}

template <InstructionSet Set>
int64_t grid_targets(const GridTargets& p) {
  std::fill_n(p.area, p.targets + 1, 0.0);
  return p.overlapping ? runs_of_masks(p) : runs_of_segments(p);
}

template int64_t grid_targets<InstructionSet::MASKFORMER_SET>(const GridTargets&);
template void matching_cost<InstructionSet::MASKFORMER_SET>(const MatchingCost&);
template int64_t matching_sums_workspace<InstructionSet::MASKFORMER_SET>(const MatchingSums&, int);
template void matching_sums<InstructionSet::MASKFORMER_SET>(const MatchingSums&, std::byte*, int);

}  // namespace maskformer::cpu
