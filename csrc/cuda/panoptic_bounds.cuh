// What the corners of the cells under a tile say about the contest: decided cells, and candidates.
#pragma once

#include "cuda/panoptic_tile.cuh"

namespace maskformer::cuda {
namespace {

struct Bounds {
  float least, most;  // of score * prob in a cell
};

__device__ __forceinline__ Bounds bounds_of(const Corners& corners, float score) {
  if (is_wild(corners)) return {0.0f, score};
  return {score * probability(least(corners)), score * probability(most(corners))};
}

constexpr int32_t kNoCell = -1;

// A cell under the tile.
struct Cell {
  CellOffsets offsets;
  int32_t index;   // in the tile
  int32_t pixels;  // of the tile
};

__device__ inline Cell cell_of(const TileShared& tile, int32_t index, int32_t across,
                               int64_t grid_columns) {
  const int32_t row = tile.rows.low[0] + index / across;
  const int32_t column = tile.columns.low[0] + index % across;
  const int32_t high = tile.rows.first_in(row + 1) - tile.rows.first_in(row);
  const int32_t wide = tile.columns.first_in(column + 1) - tile.columns.first_in(column);
  return {cell_offsets(tile.rows, tile.columns, row, column, grid_columns), index, high * wide};
}

// Bits of the queries, 32 at a time: of those that may win in a cell, and whose mask ends there.
struct CellBits {
  int32_t word;
  uint32_t candidates, border;

  __device__ void store(const Contest& c, const TileMemory& memory, const Cell& cell) const {
    if (cell.index == kNoCell) return;
    memory.candidates[word * c.most_cells + cell.index] = candidates;
    memory.border[word * c.most_cells + cell.index] = border;
  }
};

// First look at a warp's cells: finds the queries whose mask ends there, and those that may win by
// what the queries before them leave, and counts the pixels of cells that lie inside a mask.
// Returns what an upper bound must reach. A lane with kNoCell has no pixels.
template <typename Item>
__device__ float bound_cell(const Contest& c, const TileMemory& memory, const Place<Item>& place,
                            const Cell& cell) {
  constexpr int kTogether = 3;  // queries whose loads are under way at a time
  const int64_t plane = c.shape.rows * c.shape.columns;
  CellBits bits{};
  float threshold = 0.0f;
  for (int32_t first = 0; first < place.count; first += kTogether) {
    Corners corners[kTogether];
    int32_t queries[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      queries[j] = place.kept[min(first + j, place.count - 1)];
      corners[j] = load_corners(place.grids + queries[j] * plane, cell.offsets);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (first + j >= place.count) break;
      const int32_t q = queries[j];
      const float score = place.score[q];
      const MaskLimits limits = mask_limits(c.rules, score);
      const Bounds bounds = bounds_of(corners[j], score);
      const bool inside = bounds.least >= limits.inside;
      const int32_t owned = __reduce_add_sync(kAllLanes, inside ? cell.pixels : 0);
      if (threadIdx.x % kWarp == 0 && owned != 0) atomicAdd(&memory.original[q], owned);
      threshold = fmaxf(threshold, bounds.least * (1.0f - kMargin));
      for (; bits.word < q / kWarp; bits = {bits.word + 1, 0, 0}) bits.store(c, memory, cell);
      const uint32_t bit = 1u << (q % kWarp);
      bits.candidates |= bounds.most >= threshold ? bit : 0;
      bits.border |= !inside && bounds.most >= limits.outside ? bit : 0;
    }
  }
  const int32_t words = static_cast<int32_t>(words_of(c));
  for (; bits.word < words; bits = {bits.word + 1, 0, 0}) bits.store(c, memory, cell);
  return threshold;
}

// Second look, at the candidates only, now that the threshold is known. Fills the cell's mark, and
// counts its pixels or the samples that they need.
template <typename Item>
__device__ void decide_cell(const Contest& c, TileShared& tile, const TileMemory& memory,
                            const Place<Item>& place, const Cell& cell, float threshold) {
  const int64_t plane = c.shape.rows * c.shape.columns;
  const int32_t words = static_cast<int32_t>(words_of(c));
  int32_t last = 0, count = 0, visited = 0;
  float least_of_last = 0.0f;
  bool is_border = false;
  for (int32_t word = 0; word < words; ++word) {
    uint32_t& candidates = memory.candidates[word * c.most_cells + cell.index];
    const uint32_t border = memory.border[word * c.most_cells + cell.index];
    uint32_t found = candidates;
    for (uint32_t left = found; left != 0; left &= left - 1) {
      const int32_t bit = __ffs(static_cast<int>(left)) - 1, q = word * kWarp + bit;
      const Bounds bounds =
          bounds_of(load_corners(place.grids + q * plane, cell.offsets), place.score[q]);
      if (bounds.most < threshold) {
        found &= ~(1u << bit);
        continue;
      }
      last = q;
      least_of_last = bounds.least;
    }
    candidates = found;
    count += __popc(found);
    visited += __popc(found | border);
    is_border |= border != 0;
  }
  if (count != 1 || is_border) {
    memory.mark[cell.index] = kOpen;
    atomicAdd(&tile.work, static_cast<uint32_t>(visited * cell.pixels));
    return;
  }
  const bool writes = c.rules.dialect != Dialect::mask2former ||
                      least_of_last >= mask_limits(c.rules, place.score[last]).inside;
  memory.mark[cell.index] = writes ? last : kVoid;
  atomicAdd(&memory.won[last], cell.pixels);
  if (writes) atomicAdd(&memory.written[last], cell.pixels);
}

template <typename Item>
__device__ void bound_tile(const Contest& c, TileShared& tile, const TileMemory& memory,
                           const Place<Item>& place) {
  const int32_t across = tile.columns.cells(), cells = tile.rows.cells() * across;
  const int32_t whole_warps = (cells + kWarp - 1) / kWarp * kWarp;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < whole_warps; i += kTileThreads) {
    const bool valid = i < cells;
    Cell cell = cell_of(tile, valid ? i : 0, across, c.shape.columns);
    if (!valid) {
      cell.index = kNoCell;
      cell.pixels = 0;
    }
    const float threshold = bound_cell(c, memory, place, cell);
    if (valid) decide_cell(c, tile, memory, place, cell, threshold);
  }
}

// Whether sampling the open cells alone is less work than sampling all pixels of the tile, which is
// the cheaper half of it: neighbours read neighbours, and count together.
template <typename Item>
__device__ bool pays_to_skip(const TileShared& tile, const Place<Item>& place) {
  const int64_t all = int64_t{1} * tile.rows.outputs * tile.columns.outputs * place.count;
  return 2 * static_cast<int64_t>(tile.work) <= all;
}

}  // namespace
}  // namespace maskformer::cuda
