// What the corners of the cells say about the outcome of an argmax, for all cells of a tile.
//
// Contenders (classes, or queries) have a lower and an upper bound in every cell. One whose upper
// bound is less than the greatest lower bound wins nowhere in the cell; the others are the cell's
// candidates.
#pragma once

#include "cpu/map_tiles.hpp"

namespace maskformer::cpu {
namespace {

// The least and the greatest corner of every cell of a tile: [kTileCells] each.
inline void corner_bounds(const float* __restrict upper, const float* __restrict lower,
                          float* __restrict least, float* __restrict most) {
  for (int64_t x = 0; x < kTileCells; ++x) {
    const float a = upper[x], b = upper[x + 1], c = lower[x], d = lower[x + 1];
    const float least_left = a < c ? a : c, least_right = b < d ? b : d;
    const float most_left = a < c ? c : a, most_right = b < d ? d : b;
    least[x] = least_left < least_right ? least_left : least_right;
    most[x] = most_left < most_right ? most_right : most_left;
  }
}

// The least and the greatest probability of query n in every cell of a tile: [kTileCells] each.
inline void probability_bounds(const Tile& tile, int64_t n, float* __restrict least,
                               float* __restrict most) {
  corner_bounds(tile.prob_row(n, 0), tile.prob_row(n, 1), least, most);
  if (tile.sigmoid_first || !(tile.wild[2 * n] | tile.wild[2 * n + 1])) return;
  const float* __restrict top = tile.value_row(n, 0);
  const float* __restrict bottom = tile.value_row(n, 1);
  for (int64_t x = 0; x < kTileCells; ++x) {
    const float sum =
        magnitude(top[x]) + magnitude(top[x + 1]) + magnitude(bottom[x]) + magnitude(bottom[x + 1]);
    least[x] = sum < kWild ? least[x] : 0.0f;
    most[x] = sum < kWild ? most[x] : 1.0f;
  }
}

struct CellBounds {
  int64_t contenders;
  float* least;      // [contenders, kTileCells] lower bounds
  float* most;       // [contenders, kTileCells] upper bounds
  float* threshold;  // [kTileCells] what an upper bound must reach
  int32_t* count;    // [kTileCells] candidates of the cell
  int32_t* last;     // [kTileCells] the last candidate
  int32_t* live;     // [contenders] those that are candidates somewhere in the tile
  int64_t num_live;

  bool is_candidate(int64_t n, int64_t x) const { return most[n * kTileCells + x] >= threshold[x]; }
};

inline CellBounds lay_out_bounds(Arena& arena, int64_t contenders) {
  CellBounds bounds{};
  bounds.contenders = contenders;
  bounds.least = arena.take<float>(contenders * kTileCells);
  bounds.most = arena.take<float>(contenders * kTileCells);
  bounds.threshold = arena.take<float>(kTileCells);
  bounds.count = arena.take<int32_t>(kTileCells);
  bounds.last = arena.take<int32_t>(kTileCells);
  bounds.live = arena.take<int32_t>(contenders);
  return bounds;
}

// Without bounds every contender may win everywhere.
inline void all_live(CellBounds& bounds) {
  bounds.num_live = bounds.contenders;
  for (int64_t n = 0; n < bounds.contenders; ++n) bounds.live[n] = static_cast<int32_t>(n);
}

// From `least` and `most`, all the rest.
inline void find_candidates(CellBounds& bounds) {
  float* __restrict threshold = bounds.threshold;
  int32_t* __restrict count = bounds.count;
  int32_t* __restrict last = bounds.last;
  std::fill_n(threshold, kTileCells, 0.0f);
  std::fill_n(count, kTileCells, 0);
  for (int64_t n = 0; n < bounds.contenders; ++n) {
    const float* __restrict least = bounds.least + n * kTileCells;
    for (int64_t x = 0; x < kTileCells; ++x) {
      threshold[x] = threshold[x] < least[x] ? least[x] : threshold[x];
    }
  }
  for (int64_t x = 0; x < kTileCells; ++x) threshold[x] *= 1.0f - kMargin;
  bounds.num_live = 0;
  for (int64_t n = 0; n < bounds.contenders; ++n) {
    const float* __restrict most = bounds.most + n * kTileCells;
    int32_t any = 0;
    for (int64_t x = 0; x < kTileCells; ++x) {
      const bool candidate = most[x] >= threshold[x];
      count[x] += candidate ? 1 : 0;
      last[x] = candidate ? static_cast<int32_t>(n) : last[x];
      any |= candidate ? 1 : 0;
    }
    if (any) bounds.live[bounds.num_live++] = static_cast<int32_t>(n);
  }
}

}  // namespace
}  // namespace maskformer::cpu
