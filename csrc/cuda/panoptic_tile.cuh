// A tile of panoptic_map's contest: where it lies, its shared memory and its counters.
#pragma once

#include "core/panoptic.hpp"
#include "cuda/map_tiles.cuh"
#include "cuda/panoptic_queries.cuh"

namespace maskformer::cuda {
namespace {

constexpr int kTileRows = 24, kTileColumns = 128;  // pixels
constexpr int kTileThreads = 256;
constexpr int kTileBlocks = 3;                 // of a multiprocessor: leaves 80 registers
constexpr int kRun = 4;                        // pixels of a column that a thread samples
constexpr int32_t kVoid = -1;                  // a pixel that its winner does not write
constexpr int32_t kOpen = -2;                  // a cell whose pixels must be sampled
constexpr int64_t kMostSharedCounters = 2048;  // queries whose counters a block holds
static_assert(kTileRows <= kWarp && kTileRows + kTileColumns <= kTileThreads, "one thread each");

struct Contest {
  MapShape shape;
  PanopticRules rules;
  const double* region;
  const void* logits;
  int32_t* segments;
  PanopticState state;
  bool counts_in_shared;
  int32_t most_cells;  // under a tile, of which there are bounds; 0: without bounds
};

// Of one image, and the block's place in it.
template <typename Item>
struct Place {
  const Item* grids;      // [Q, h, w]
  const Contender* kept;  // [count]
  int32_t count;
  int64_t first_query;  // in [B, Q]
  int32_t* segments;    // [H, W]
  Extent extent;
};

// Pixels of a tile in one column of one cell: rows [first, first + count).
struct Run {
  int32_t first, count;
};

struct TileShared {
  TileAxis<kTileRows> rows;
  TileAxis<kTileColumns> columns;
  Run runs[kTileRows];
  int32_t num_runs;
  uint32_t work;  // samples that open cells need
};

// The block's dynamic shared memory.
struct TileMemory {
  int32_t* won;  // [Q], and so on, if counts_in_shared
  int32_t* written;
  int32_t* original;
  int32_t* mark;         // [most_cells] the winner of a cell, kVoid or kOpen
  uint32_t* candidates;  // [words, most_cells] bits of contenders that may win in a cell
  uint32_t* border;      // [words, most_cells] bits of contenders whose mask ends in a cell
};

MASKFORMER_HD int64_t counters_of(const Contest& c) {
  return c.counts_in_shared ? c.shape.queries : 0;
}

MASKFORMER_HD int64_t words_of(const Contest& c) { return (c.shape.queries + 31) / 32; }

inline int64_t shared_bytes(const Contest& c) {
  constexpr int64_t kWord = 4;
  return kWord * (3 * counters_of(c) + c.most_cells * (1 + 2 * words_of(c)));
}

__device__ inline TileMemory tile_memory(const Contest& c) {
  int32_t* counters = dynamic_shared<int32_t>();
  const int64_t q = counters_of(c), bits = words_of(c) * c.most_cells;
  int32_t* mark = counters + 3 * q;
  uint32_t* candidates = reinterpret_cast<uint32_t*>(mark + c.most_cells);
  return {counters, counters + q, counters + 2 * q, mark, candidates, candidates + bits};
}

// counter += amount, of query q: in `shared`, or in the counters of all blocks.
__device__ __forceinline__ void tally(const Contest& c, int32_t* shared, unsigned long long* global,
                                      int64_t first_query, int32_t q, int32_t amount) {
  if (c.counts_in_shared) {
    atomicAdd(&shared[q], amount);
  } else {
    atomicAdd(&global[first_query + q], static_cast<unsigned long long>(amount));
  }
}

__device__ inline void clear_counters(const Contest& c, const TileMemory& memory) {
  for (int64_t i = threadIdx.x; i < 3 * counters_of(c); i += kTileThreads) memory.won[i] = 0;
}

__device__ inline void add_to_global(unsigned long long* counter, int32_t amount) {
  if (amount != 0) atomicAdd(counter, static_cast<unsigned long long>(amount));
}

template <typename Item>
__device__ void flush_counters(const Contest& c, const TileMemory& memory,
                               const Place<Item>& place) {
  if (!c.counts_in_shared) return;
  for (int32_t n = static_cast<int32_t>(threadIdx.x); n < place.count; n += kTileThreads) {
    const int32_t q = place.kept[n].query;
    const Counters& pixels = c.state.pixels;
    add_to_global(&pixels.won[place.first_query + q], memory.won[q]);
    add_to_global(&pixels.written[place.first_query + q], memory.written[q]);
    add_to_global(&pixels.original[place.first_query + q], memory.original[q]);
  }
}

// Splits the tile's rows into runs; by one whole warp.
__device__ inline void find_runs(TileShared& tile, int32_t lane) {
  const bool used = lane < tile.rows.outputs;
  const int32_t here = used ? tile.rows.low[lane] : 0;
  const bool new_cell = used && (lane == 0 || tile.rows.low[lane - 1] != here);
  const uint32_t cells = __ballot_sync(kAllLanes, new_cell);
  const uint32_t up_to_here = kAllLanes >> (kWarp - 1 - lane);
  const int32_t start = kWarp - 1 - __clz(static_cast<int>(cells & up_to_here));
  const bool begins = used && (lane - start) % kRun == 0;
  const uint32_t runs = __ballot_sync(kAllLanes, begins);
  if (begins) {
    const uint32_t later = lane == kWarp - 1 ? 0 : runs >> (lane + 1);
    const int32_t count = later != 0 ? __ffs(static_cast<int>(later)) : tile.rows.outputs - lane;
    tile.runs[__popc(runs & ~(kAllLanes << lane))] = {lane, count};
  }
  if (lane == 0) tile.num_runs = __popc(runs);
}

template <typename Item>
__device__ Place<Item> place_of(const Contest& c, int64_t image) {
  const int64_t first = image * c.shape.queries;
  const Item* logits = static_cast<const Item*>(c.logits);
  return {logits + first * c.shape.rows * c.shape.columns,
          c.state.kept + first,
          c.state.kept_count[image],
          first,
          c.segments + image * c.shape.height * c.shape.width,
          extent_of(c.region, c.shape, image)};
}

}  // namespace
}  // namespace maskformer::cuda
