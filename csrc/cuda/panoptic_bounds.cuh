// What the corners of the cells under a tile say about the contest: decided cells, and candidates.
#pragma once

#include "cuda/panoptic_tile.cuh"

namespace maskformer::cuda {
namespace {

// What the corners of a cell say of a query.
struct Outlook {
  bool wild;          // nothing
  float least, most;  // logits

  __device__ explicit Outlook(const Corners& corners)
      : wild(is_wild(corners)), least(cuda::least(corners)), most(cuda::most(corners)) {}

  __device__ bool inside(const Contender& who) const { return !wild && least >= who.inside; }
  __device__ bool outside(const Contender& who) const { return !wild && most < who.outside; }

  // Of score * prob.
  __device__ float at_least(const Contender& who) const {
    return wild ? 0.0f : who.score * probability(least);
  }
  __device__ float at_most(const Contender& who) const {
    return wild ? who.score : who.score * probability(most);
  }
};

// What a query must reach to be a candidate.
struct Threshold {
  float value = 0.0f;       // of score * prob
  float logit = -INFINITY;  // of its logits, whatever its score: a little less

  __device__ void raise(float at_least) {
    constexpr float kSlack = 0.05f;  // for the fast logarithms
    value = fmaxf(value, at_least * (1.0f - kMargin));
    logit = __logf(value) - __logf(1.0f - value) - kSlack;
  }
};

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

// First look at a warp's cells: finds the contenders whose mask ends there, and those that may win
// by what the ones before them leave, and counts the pixels of cells that lie inside a mask. Most
// contenders are nowhere near any of the warp's cells. A lane with kNoCell has no pixels.
template <typename Item>
__device__ Threshold bound_cell(const Contest& c, const TileMemory& memory,
                                const Place<Item>& place, const Cell& cell) {
  constexpr int kTogether = 4;  // contenders whose loads are under way at a time
  static_assert(kWarp % kTogether == 0, "they have their bits in one word");
  const uint32_t plane = static_cast<uint32_t>(c.shape.rows * c.shape.columns);  // see plan_contest
  const Item* cell_of_first = place.grids + cell.offsets.upper_left;
  const CellOffsets corners_of_cell{0, cell.offsets.down, cell.offsets.right};
  uint32_t candidates = 0, border = 0;
  Threshold threshold;
  for (int32_t first = 0; first < place.count; first += kTogether) {
    Contender who[kTogether];
    Corners corners[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      who[j] = place.kept[min(first + j, place.count - 1)];
      corners[j] = load_corners(
          cell_of_first + uint64_t{static_cast<uint32_t>(who[j].query)} * plane, corners_of_cell);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const Outlook outlook(corners[j]);
      const bool near = outlook.wild || outlook.most >= fminf(who[j].outside, threshold.logit);
      if (first + j >= place.count || !__any_sync(kAllLanes, near)) continue;
      const bool inside = outlook.inside(who[j]);
      const int32_t owned = __reduce_add_sync(kAllLanes, inside ? cell.pixels : 0);
      if (threadIdx.x % kWarp == 0 && owned != 0) atomicAdd(&memory.original[who[j].query], owned);
      threshold.raise(outlook.at_least(who[j]));
      const uint32_t bit = 1u << ((first + j) % kWarp);
      candidates |= outlook.at_most(who[j]) >= threshold.value ? bit : 0;
      border |= !inside && !outlook.outside(who[j]) ? bit : 0;
    }
    const int32_t next = first + kTogether;
    if (next % kWarp != 0 && next < place.count) continue;
    if (cell.index != kNoCell) {
      memory.candidates[first / kWarp * c.most_cells + cell.index] = candidates;
      memory.border[first / kWarp * c.most_cells + cell.index] = border;
    }
    candidates = border = 0;
  }
  return threshold;
}

// Second look, at the candidates only, now that the threshold is known. Fills the cell's mark, and
// counts its pixels or the samples that they need.
template <typename Item>
__device__ void decide_cell(const Contest& c, TileShared& tile, const TileMemory& memory,
                            const Place<Item>& place, const Cell& cell,
                            const Threshold& threshold) {
  const int64_t plane = c.shape.rows * c.shape.columns;
  int32_t count = 0, visited = 0, winner = 0;
  bool is_border = false, writes = false;
  for (int32_t word = 0; word < (place.count + kWarp - 1) / kWarp; ++word) {
    uint32_t& candidates = memory.candidates[word * c.most_cells + cell.index];
    const uint32_t border = memory.border[word * c.most_cells + cell.index];
    uint32_t found = candidates;
    for (uint32_t left = found; left != 0; left &= left - 1) {
      const int32_t bit = __ffs(static_cast<int>(left)) - 1;
      const Contender who = place.kept[word * kWarp + bit];
      const Outlook outlook(load_corners(place.grids + who.query * plane, cell.offsets));
      if (outlook.at_most(who) < threshold.value) {
        found &= ~(1u << bit);
        continue;
      }
      winner = who.query;
      writes = c.rules.dialect != Dialect::mask2former || outlook.inside(who);
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
  memory.mark[cell.index] = writes ? winner : kVoid;
  atomicAdd(&memory.won[winner], cell.pixels);
  if (writes) atomicAdd(&memory.written[winner], cell.pixels);
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
    const Threshold threshold = bound_cell(c, memory, place, cell);
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
