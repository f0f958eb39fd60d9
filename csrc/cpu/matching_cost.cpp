// matching_cost: the sums over the mask grid from which every target's cost of every query follows.
//   in      logits of all queries at some cells   the targets that cover each cell
//   out     sums [2 T + 2, queries] float64: for each target sum y (pos - neg), then for each
//           sum y s, then sum neg and sum s
//   maths   core/focal.hpp; one exponential, reciprocal and logarithm an element
//   plan    cell by cell, all queries at once in vectors: a cell's terms are added to the rows of
//           the targets that cover it, so there is no product with 0/1 masks, and many small
//           targets cost as much as one. Logits that lie query by query are turned around in small
//           tiles. Tiles of 256 cells are summed in float32, the tiles in float64, in order: the
//           same bits with any number of threads
//   bounds  kRound tiles of partial sums are kept at a time
//   NaN     0 * x joins sum neg, so that infinite logits reach the costs of all targets

#include "cpu/matching_cost.hpp"

#include <algorithm>

#include "core/arena.hpp"
#include "core/focal.hpp"
#include "cpu/parallel.hpp"

namespace maskformer::cpu {
namespace {

constexpr int64_t kTile = 256;   // cells whose sums stay in float32
constexpr int64_t kTurned = 64;  // cells that are turned around at a time
constexpr int64_t kCacheLine = 64;
constexpr int64_t kRound = 32;  // tiles between two reductions

// One thread's memory.
struct Scratch {
  float* turned;   // [kTurned, padded]
  float* line;     // [kTurned] one query's logits
  float* term;     // [padded] pos - neg
  float* sigmoid;  // [padded] s
};

int64_t padded(const MatchingSums& p) {
  if (p.cells_first) return p.stride;
  return (p.queries + kQueryBlock - 1) / kQueryBlock * kQueryBlock;
}

int64_t rows(const MatchingSums& p) { return 2 * p.targets + 2; }

int64_t tiles(const MatchingSums& p) { return (p.cells + kTile - 1) / kTile; }

float* take_partial(const MatchingSums& p, Arena& arena) {
  return arena.take<float>(std::min(tiles(p), kRound) * rows(p) * padded(p));
}

Scratch take_scratch(const MatchingSums& p, Arena& arena) {
  Scratch s{};
  s.turned = arena.take<float>(p.cells_first ? 0 : kTurned * padded(p));
  s.line = arena.take<float>(kTurned);
  s.term = arena.take<float>(padded(p));
  s.sigmoid = arena.take<float>(padded(p));
  return s;
}

// The terms of one cell, all queries; those that all targets share are added to their sums.
template <bool Square>
void terms(const float* __restrict logits, int64_t count, float alpha, float gamma,
           float* __restrict term, float* __restrict sigmoid, float* __restrict sum_neg,
           float* __restrict sum_sigmoid) {
#pragma omp simd
  for (int64_t q = 0; q < count; ++q) {
    const float x = logits[q];
    const float e = exp_of_negative(-magnitude(x));
    const float larger = 1.0f / (1.0f + e), smaller = e * larger, log = log_one_plus(e);
    const float s = x < 0.0f ? smaller : larger, rest = x < 0.0f ? larger : smaller;
    const float above = softplus(x, log), below = softplus(-x, log);
    const float pos = alpha * focal_power<Square>(rest, above, gamma) * below;
    const float neg = (1.0f - alpha) * focal_power<Square>(s, below, gamma) * above;
    term[q] = pos - neg;
    sigmoid[q] = s;
    sum_neg[q] += neg + 0.0f * x;
    sum_sigmoid[q] += s;
  }
}

void add(const float* __restrict values, int64_t count, float* __restrict sums) {
#pragma omp simd
  for (int64_t q = 0; q < count; ++q) sums[q] += values[q];
}

// Adds the cells [begin, end), whose logits [end - begin, padded] these are, to sums [rows,
// padded].
void visit(const MatchingSums& p, const float* logits, int64_t begin, int64_t end, const Scratch& s,
           float* sums) {
  const int64_t count = padded(p);
  float* sum_neg = sums + 2 * p.targets * count;
  float* sum_sigmoid = sum_neg + count;
  const auto of_cell = p.gamma == kSquare ? terms<true> : terms<false>;
  for (int64_t cell = begin; cell < end; ++cell, logits += count) {
    const int32_t first = p.first[cell], last = p.first[cell + 1];
    if (p.ignore_void && first == last) continue;
    of_cell(logits, count, p.alpha, p.gamma, s.term, s.sigmoid, sum_neg, sum_sigmoid);
    for (int32_t i = first; i < last; ++i) {
      const int64_t target = p.target[i];
      add(s.term, count, sums + target * count);
      add(s.sigmoid, count, sums + (p.targets + target) * count);
    }
  }
}

// Asks for the bytes that come next in a query's row: the rows are too far apart, and too many, for
// the processor to guess.
void prefetch(const std::byte* bytes, int64_t size) {
  for (int64_t i = 0; i < size; i += kCacheLine) __builtin_prefetch(bytes + i, 0, 2);
}

// The logits of the cells [begin, end) of all queries, turned around: [end - begin, padded].
void turn(const MatchingSums& p, int64_t begin, int64_t end, const Scratch& s) {
  const int64_t count = padded(p), width = end - begin;
  const std::byte* source = static_cast<const std::byte*>(p.logits);
  for (int64_t q = 0; q < p.queries; ++q) {
    const std::byte* line = source + (q * p.stride + begin) * size_of(p.type);
    prefetch(line + kTurned * size_of(p.type), kTurned * size_of(p.type));
    to_float32(line, p.type, width, s.line);
    for (int64_t cell = 0; cell < width; ++cell) s.turned[cell * count + q] = s.line[cell];
  }
}

void visit_tile(const MatchingSums& p, int64_t tile, const Scratch& s, float* sums) {
  const int64_t count = padded(p);
  const int64_t begin = tile * kTile, end = std::min(begin + kTile, p.cells);
  std::fill_n(sums, rows(p) * count, 0.0f);
  if (p.cells_first) {
    visit(p, static_cast<const float*>(p.logits) + begin * count, begin, end, s, sums);
    return;
  }
  std::fill_n(s.turned, kTurned * count, 0.0f);
  for (int64_t cell = begin; cell < end; cell += kTurned) {
    const int64_t last = std::min(cell + kTurned, end);
    turn(p, cell, last, s);
    visit(p, s.turned, cell, last, s, sums);
  }
}

// Adds row `row` of each of the partial sums [number, rows, padded].
void reduce(const MatchingSums& p, const float* partial, int64_t number, int64_t row) {
  const int64_t count = padded(p);
  double* __restrict sums = p.sums + row * p.queries;
  for (int64_t n = 0; n < number; ++n) {
    const float* __restrict part = partial + (n * rows(p) + row) * count;
    for (int64_t q = 0; q < p.queries; ++q) sums[q] += static_cast<double>(part[q]);
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
  float* partial = take_partial(p, shared);
  take_scratch(p, sizes);
  for (int64_t begin = 0; begin < tiles(p); begin += kRound) {
    const int64_t number = std::min(kRound, tiles(p) - begin);
    parallel_for(number, threads, [&](int64_t tile, int thread) {
      Arena own(workspace + shared.used() + thread * sizes.used());
      visit_tile(p, begin + tile, take_scratch(p, own), partial + tile * rows(p) * padded(p));
    });
    parallel_for(rows(p), threads, [&](int64_t row, int) { reduce(p, partial, number, row); });
  }
}

template <InstructionSet Set>
void grid_targets(const GridTargets& p) {
  const int64_t plane = p.height * p.width;
  const int16_t* segments = static_cast<const int16_t*>(p.pixels);
  const uint8_t* masks = static_cast<const uint8_t*>(p.pixels);
  std::fill_n(p.area, p.targets, 0.0);
  int32_t found = 0;
  const auto put = [&](int64_t target) {
    p.target[found++] = static_cast<int16_t>(target);
    p.area[target] += 1.0;
  };
  for (int64_t i = 0; i < p.grid_height; ++i) {
    const int64_t line = i * p.height / p.grid_height * p.width;
    for (int64_t j = 0; j < p.grid_width; ++j) {
      const int64_t pixel = line + j * p.width / p.grid_width;
      p.first[i * p.grid_width + j] = found;
      if (!p.overlapping) {
        if (segments[pixel] >= 0 && segments[pixel] < p.targets) put(segments[pixel]);
        continue;
      }
      for (int64_t t = 0; t < p.targets; ++t) {
        if (masks[t * plane + pixel] != 0) put(t);
      }
    }
  }
  p.first[p.grid_height * p.grid_width] = found;
}

template void grid_targets<InstructionSet::MASKFORMER_SET>(const GridTargets&);
template int64_t matching_sums_workspace<InstructionSet::MASKFORMER_SET>(const MatchingSums&, int);
template void matching_sums<InstructionSet::MASKFORMER_SET>(const MatchingSums&, std::byte*, int);

}  // namespace maskformer::cpu
