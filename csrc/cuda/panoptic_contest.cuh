// The kernel of panoptic_map that looks at logits: the winner of every pixel of one tile.
#pragma once

#include "cuda/panoptic_bounds.cuh"

namespace maskformer::cuda {
namespace {

// The pixels that a thread samples, and who leads there.
struct Pixels4 {
  int32_t count;
  float right, down[kRun];
  float best[kRun];
  int32_t winner[kRun];
  uint32_t writes;  // bits: the winner's mask has the pixel
};

// Query q meets those before it. Returns how many of the pixels its mask has.
template <bool SigmoidFirst>
__device__ __forceinline__ int32_t meet(Pixels4& p, int32_t q, float score, const Corners& logits,
                                        const PanopticRules& rules) {
  const Corners corners = SigmoidFirst ? probability(logits) : logits;
  int32_t owned = 0;
#pragma unroll
  for (int j = 0; j < kRun; ++j) {
    const float sampled = sample(corners, p.down[j], p.right);
    const float prob = SigmoidFirst ? sampled : probability(sampled);
    const bool own = in_mask(score, prob, rules);
    owned += own && j < p.count ? 1 : 0;
    if (score * prob > p.best[j]) {
      p.best[j] = score * prob;
      p.winner[j] = q;
      p.writes = own ? p.writes | 1u << j : p.writes & ~(1u << j);
    }
  }
  return owned;
}

__device__ inline Pixels4 start_pixels(const TileShared& tile, const Run& run, int32_t x) {
  Pixels4 p;
  p.count = x < tile.columns.outputs ? run.count : 0;
  p.right = tile.columns.weight[min(x, tile.columns.outputs - 1)];
  p.writes = 0;
#pragma unroll
  for (int j = 0; j < kRun; ++j) {
    p.down[j] = tile.rows.weight[run.first + min(j, run.count - 1)];
    p.best[j] = -1.0f;
    p.winner[j] = 0;
  }
  return p;
}

// Where pixel (run.first, x) of the tile lies in the image.
template <typename Item>
__device__ int32_t* pixel_at(const Contest& c, const TileShared& tile, const Place<Item>& place,
                             const Run& run, int32_t x) {
  return place.segments + (tile.rows.first + run.first) * c.shape.width + tile.columns.first + x;
}

template <typename Item>
__device__ void store_pixels(const Contest& c, const TileMemory& memory, const Place<Item>& place,
                             const Pixels4& p, int32_t* pixel) {
  int32_t won = 0, written = 0;
#pragma unroll
  for (int j = 0; j < kRun; ++j) {
    if (j >= p.count) break;
    const bool writes = c.rules.dialect != Dialect::mask2former || (p.writes >> j & 1u) != 0;
    pixel[j * c.shape.width] = writes ? p.winner[j] : kVoid;
    won += 1;
    written += writes ? 1 : 0;
    if (j + 1 < p.count && p.winner[(j + 1) % kRun] == p.winner[j]) continue;
    tally(c, memory.won, c.state.pixels.won, place.first_query, p.winner[j], won);
    tally(c, memory.written, c.state.pixels.written, place.first_query, p.winner[j], written);
    won = written = 0;
  }
}

// Pixels of open cells meet their candidates, and the queries whose mask ends there.
template <bool SigmoidFirst, typename Item>
__device__ void contest_open_cells(const Contest& c, const TileShared& tile,
                                   const TileMemory& memory, const Place<Item>& place) {
  const int64_t plane = c.shape.rows * c.shape.columns;
  const int32_t words = (place.count + kWarp - 1) / kWarp, across = tile.columns.cells();
  const int32_t x = static_cast<int32_t>(threadIdx.x) % kTileColumns;
  if (x >= tile.columns.outputs) return;
  const int32_t column = tile.columns.low[x];
  for (int32_t r = static_cast<int32_t>(threadIdx.x) / kTileColumns; r < tile.num_runs;
       r += kTileThreads / kTileColumns) {
    const Run run = tile.runs[r];
    const int32_t row = tile.rows.low[run.first];
    const int32_t index = (row - tile.rows.low[0]) * across + column - tile.columns.low[0];
    int32_t* pixel = pixel_at(c, tile, place, run, x);
    const int32_t mark = memory.mark[index];
    if (mark != kOpen) {
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        if (j < run.count) pixel[j * c.shape.width] = mark;
      }
      continue;
    }
    const CellOffsets offsets = cell_offsets(tile.rows, tile.columns, row, column, c.shape.columns);
    Pixels4 p = start_pixels(tile, run, x);
    for (int32_t word = 0; word < words; ++word) {
      const uint32_t border = memory.border[word * c.most_cells + index];
      uint32_t left = border | memory.candidates[word * c.most_cells + index];
      for (; left != 0; left &= left - 1) {
        const int32_t bit = __ffs(static_cast<int>(left)) - 1;
        const Contender who = place.kept[word * kWarp + bit];
        const Corners corners = load_corners(place.grids + who.query * plane, offsets);
        const int32_t owned = meet<SigmoidFirst>(p, who.query, who.score, corners, c.rules);
        if ((border >> bit & 1u) != 0 && owned != 0) atomicAdd(&memory.original[who.query], owned);
      }
    }
    store_pixels(c, memory, place, p, pixel);
  }
}

// All pixels meet all queries.
template <bool SigmoidFirst, typename Item>
__device__ void contest_everywhere(const Contest& c, const TileShared& tile,
                                   const TileMemory& memory, const Place<Item>& place) {
  const int64_t plane = c.shape.rows * c.shape.columns;
  const int32_t x = static_cast<int32_t>(threadIdx.x) % kTileColumns;
  const int32_t column = tile.columns.low[min(x, tile.columns.outputs - 1)];
  for (int32_t r = static_cast<int32_t>(threadIdx.x) / kTileColumns; r < tile.num_runs;
       r += kTileThreads / kTileColumns) {
    const Run run = tile.runs[r];
    const CellOffsets offsets =
        cell_offsets(tile.rows, tile.columns, tile.rows.low[run.first], column, c.shape.columns);
    Pixels4 p = start_pixels(tile, run, x);
    for (int32_t n = 0; n < place.count; ++n) {
      const Contender who = place.kept[n];
      const Corners corners = load_corners(place.grids + who.query * plane, offsets);
      const int32_t owned = meet<SigmoidFirst>(p, who.query, who.score, corners, c.rules);
      const int32_t sum = __reduce_add_sync(kAllLanes, owned);
      if (threadIdx.x % kWarp != 0 || sum == 0) continue;
      tally(c, memory.original, c.state.pixels.original, place.first_query, who.query, sum);
    }
    if (p.count > 0) store_pixels(c, memory, place, p, pixel_at(c, tile, place, run, x));
  }
}

template <typename Item>
__device__ void leave_void(const Contest& c, const TileShared& tile, const Place<Item>& place) {
  const int32_t x = static_cast<int32_t>(threadIdx.x) % kTileColumns;
  if (x >= tile.columns.outputs) return;
  for (int32_t y = static_cast<int32_t>(threadIdx.x) / kTileColumns; y < tile.rows.outputs;
       y += kTileThreads / kTileColumns) {
    *pixel_at(c, tile, place, {y, 1}, x) = kVoid;
  }
}

template <bool SigmoidFirst, typename Item>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    contest(__grid_constant__ const Contest c) {
  __shared__ TileShared tile;
  const int64_t across = (c.shape.width + kTileColumns - 1) / kTileColumns;
  const int64_t down = (c.shape.height + kTileRows - 1) / kTileRows;
  const int64_t index = blockIdx.x, image = index / (across * down);
  const Place<Item> place = place_of<Item>(c, image);
  const TileMemory memory = tile_memory(c);
  tile.rows.fill(index / across % down * kTileRows, c.shape.height, place.extent.rows, 0);
  tile.columns.fill(index % across * kTileColumns, c.shape.width, place.extent.columns, kTileRows);
  if (threadIdx.x == 0) tile.work = 0;
  clear_counters(c, memory);
  __syncthreads();
  if (threadIdx.x < kWarp) find_runs(tile, static_cast<int32_t>(threadIdx.x));
  if (place.count == 0) return leave_void(c, tile, place);
  bool skips = c.most_cells > 0;
  if (skips) {
    bound_tile(c, tile, memory, place);
    __syncthreads();
    skips = pays_to_skip(tile, place);
    if (!skips) clear_counters(c, memory);
  }
  __syncthreads();
  if (skips) {
    contest_open_cells<SigmoidFirst>(c, tile, memory, place);
  } else {
    contest_everywhere<SigmoidFirst>(c, tile, memory, place);
  }
  __syncthreads();
  flush_counters(c, memory, place);
}

}  // namespace
}  // namespace maskformer::cuda
