// instance_masks: single queries' masks at full size, and what is to be known of them.
//   in      mask logits [B, Q, h, w]   query [N] in [0, B * Q)   region [B, 2]
//   out     statistics: mean [N] of the probability inside the mask   boxes [N, 4] x0 y0 x1 y1
//           masks: [N, H, W], 1 where the sampled logit is > 0
//   maths   sampling keeps the sign of a cell's corners, exactly: cells of one sign are skipped or
//           filled; only pixels inside a mask need a sigmoid
//   plan    two calls, since the order of the masks depends on their means: statistics of every
//           query once, then masks straight to where they belong. One thread per query
//   ties    sums in a fixed order: the same bits whatever the number of threads

#include "cpu/instance_masks.hpp"

#include <cstdint>

#include "cpu/map_bounds.hpp"
#include "cpu/pages.hpp"
#include "cpu/parallel.hpp"

namespace maskformer::cpu {
namespace {

enum class Cell : int32_t { outside, inside, mixed };

// Neighbouring cells of one kind, and the output columns in them.
struct Run {
  Cell cell;
  int64_t left, right;
};

struct Painter {
  Tile tile;
  Cell* cell;      // [kTileCells]
  float* least;    // [kTileCells]
  float* most;     // [kTileCells]
  float* between;  // [kTileStride] the grid at one output row
  Run* runs;       // [kTileCells]
  int64_t num_runs;
};

struct Statistics {
  double total = 0.0;  // of the probabilities inside
  int64_t area = 0;
  int64_t left = INT64_MAX, top = INT64_MAX, right = 0, bottom = 0;
};

// Workspace that all threads share.
struct Shared {
  Axes axes;
  Statistics* statistics;  // [count]
};

Shared lay_out_shared(Arena& arena, const MapShape& shape, int64_t count) {
  return {lay_out_axes(arena, shape), arena.take<Statistics>(count)};
}

Painter lay_out(Arena& arena) {
  return {lay_out_tile(arena, 1, false),
          arena.take<Cell>(kTileCells),
          arena.take<float>(kTileCells),
          arena.take<float>(kTileCells),
          arena.take<float>(kTileStride),
          arena.take<Run>(kTileCells),
          0};
}

// Splits the tile into runs. With `sample_inside`, cells inside the mask count as mixed.
void find_runs(Painter& p, bool sample_inside) {
  corner_bounds(p.tile.value_row(0, 0), p.tile.value_row(0, 1), p.least, p.most);
  const bool wild = p.tile.wild[0] | p.tile.wild[1];
  const Cell inside = sample_inside ? Cell::mixed : Cell::inside;
  for (int64_t x = 0; x < kTileCells; ++x) {
    const Cell cell = p.most[x] > 0.0f ? (p.least[x] > 0.0f ? inside : Cell::mixed) : Cell::outside;
    p.cell[x] = wild ? Cell::mixed : cell;
  }
  p.num_runs = 0;
  for (int64_t x = 0, end; x < p.tile.cells; x = end) {
    for (end = x + 1; end < p.tile.cells && p.cell[end] == p.cell[x];) ++end;
    const Rectangle area = p.tile.pixels(x, end);
    p.runs[p.num_runs++] = {p.cell[x], area.left, area.right};
  }
}

// The grid between two of its rows, where output row y reads it.
void sample_row(const Painter& p, int64_t y) {
  const float* __restrict upper = p.tile.value_row(0, 0);
  const float* __restrict lower = p.tile.value_row(0, 1);
  float* __restrict between = p.between;
  const float down = p.tile.rows.weight[y];
  for (int64_t x = 0; x < kTileStride; ++x) between[x] = lerp(upper[x], lower[x], down);
}

float sample_pixel(const Painter& p, int64_t x) {
  const int64_t cell = p.tile.columns.low[x] - p.tile.column;
  return lerp(p.between[cell], p.between[cell + 1], p.tile.columns.weight[x]);
}

void add_row(const Painter& p, int64_t y, int64_t begin, int64_t end, Statistics& sum) {
  float total = 0.0f;
  int32_t area = 0;
  int32_t first = INT32_MAX, last = -1;
#pragma omp simd reduction(+ : total, area) reduction(min : first) reduction(max : last)
  for (int32_t x = static_cast<int32_t>(begin); x < static_cast<int32_t>(end); ++x) {
    const float logit = sample_pixel(p, x);
    const bool in_mask = logit > 0.0f;
    total += in_mask ? sigmoid(logit) : 0.0f;
    area += in_mask ? 1 : 0;
    first = in_mask && x < first ? x : first;
    last = in_mask && x > last ? x : last;
  }
  if (area == 0) return;
  sum.total += static_cast<double>(total);
  sum.area += area;
  sum.left = std::min<int64_t>(sum.left, first);
  sum.right = std::max<int64_t>(sum.right, last + 1);
  sum.top = std::min(sum.top, y);
  sum.bottom = std::max(sum.bottom, y + 1);
}

void add_tile(Painter& p, Statistics& sum) {
  find_runs(p, true);
  if (p.num_runs == 1 && p.runs[0].cell == Cell::outside) return;
  const Rectangle all = p.tile.pixels(0, p.tile.cells);
  for (int64_t y = all.top; y < all.bottom; ++y) {
    sample_row(p, y);
    for (int64_t r = 0; r < p.num_runs; ++r) {
      const Run& run = p.runs[r];
      if (run.cell != Cell::outside) add_row(p, y, run.left, run.right, sum);
    }
  }
}

void paint_tile(Painter& p, uint8_t* mask, int64_t width) {
  find_runs(p, false);
  const Rectangle all = p.tile.pixels(0, p.tile.cells);
  for (int64_t y = all.top; y < all.bottom; ++y) {
    uint8_t* row = mask + y * width;
    if (p.num_runs > 1 || p.runs[0].cell == Cell::mixed) sample_row(p, y);
    for (int64_t r = 0; r < p.num_runs; ++r) {
      const Run& run = p.runs[r];
      if (run.cell == Cell::mixed) {
        for (int64_t x = run.left; x < run.right; ++x) row[x] = sample_pixel(p, x) > 0.0f ? 1 : 0;
      } else {
        std::fill(row + run.left, row + run.right, run.cell == Cell::inside ? 1 : 0);
      }
    }
  }
}

// Calls visit(painter, n, statistics of n) for all tiles of query[n], for each n.
template <typename Visit>
const Statistics* for_queries(const MaskLogits& logits, const int64_t* query, int64_t count,
                              const MapShape& shape, std::byte* workspace, int threads,
                              const Visit& visit) {
  Arena arena(workspace), own(nullptr);
  const Shared shared = lay_out_shared(arena, shape, count);
  fill_axes(shared.axes, logits, shape);
  std::fill_n(shared.statistics, count, Statistics{});
  lay_out(own);
  parallel_for(count, threads, [&](int64_t n, int thread) {
    Arena share(workspace + arena.used() + thread * own.used());
    Painter p = lay_out(share);
    const int32_t index = static_cast<int32_t>(query[n] % shape.queries);
    p.tile.queries = &index;
    p.tile.num_queries = 1;
    for (int64_t strip = 0; strip < strips_of_image(logits, shape); ++strip) {
      walk(p.tile, query[n] / shape.queries, strip, shared.axes, logits, shape,
           [&](const Tile&) { visit(p, n, shared.statistics[n]); });
    }
  });
  return shared.statistics;
}

}  // namespace

template <InstructionSet Set>
int64_t instance_masks_workspace(const MapShape& shape, int64_t count, int threads) {
  Arena shared(nullptr), own(nullptr);
  lay_out_shared(shared, shape, count);
  lay_out(own);
  return shared.used() + threads * own.used();
}

template <InstructionSet Set>
void instance_statistics(const MaskLogits& logits, const int64_t* query, int64_t count, float* mean,
                         int32_t* boxes, const MapShape& shape, std::byte* workspace, int threads) {
  const Statistics* statistics =
      for_queries(logits, query, count, shape, workspace, threads,
                  [](Painter& p, int64_t, Statistics& sum) { add_tile(p, sum); });
  for (int64_t n = 0; n < count; ++n) {
    const Statistics& sum = statistics[n];
    const bool empty = sum.area == 0;
    mean[n] = empty ? 0.0f : static_cast<float>(sum.total / static_cast<double>(sum.area));
    boxes[4 * n] = empty ? 0 : static_cast<int32_t>(sum.left);
    boxes[4 * n + 1] = empty ? 0 : static_cast<int32_t>(sum.top);
    boxes[4 * n + 2] = static_cast<int32_t>(sum.right);
    boxes[4 * n + 3] = static_cast<int32_t>(sum.bottom);
  }
}

template <InstructionSet Set>
void instance_masks(const MaskLogits& logits, const int64_t* query, int64_t count, uint8_t* masks,
                    const MapShape& shape, std::byte* workspace, int threads) {
  prefer_huge_pages(masks, count * shape.height * shape.width);
  for_queries(logits, query, count, shape, workspace, threads,
              [&](Painter& p, int64_t n, Statistics&) {
                paint_tile(p, masks + n * shape.height * shape.width, shape.width);
              });
}

template int64_t instance_masks_workspace<InstructionSet::MASKFORMER_SET>(const MapShape&, int64_t,
                                                                          int);
template void instance_statistics<InstructionSet::MASKFORMER_SET>(const MaskLogits&, const int64_t*,
                                                                  int64_t, float*, int32_t*,
                                                                  const MapShape&, std::byte*, int);
template void instance_masks<InstructionSet::MASKFORMER_SET>(const MaskLogits&, const int64_t*,
                                                             int64_t, uint8_t*, const MapShape&,
                                                             std::byte*, int);

}  // namespace maskformer::cpu
