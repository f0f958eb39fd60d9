// How the maps walk over an image: by tiles of one row of grid cells, and blocks of 16 pixels.
//
// Cell (y, x) has the corners (y, x), (y, x+1), (y+1, x), (y+1, x+1) of the mask grid, clamped to
// its last row and column; it holds the pixels whose Source says so. A tile is up to kTileCells
// cells of one row, with both of their grid rows of every query as float32. Inside a cell a
// sampled value lies between the cell's corners, and so does its sigmoid: the bounds.
//
// Everything is in an unnamed namespace: each instruction set has its own copy.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/arena.hpp"
#include "core/float_types.hpp"
#include "core/map_shape.hpp"
#include "core/sampling.hpp"
#include "core/vector_math.hpp"

namespace maskformer::cpu {
namespace {

constexpr int64_t kTileCells = 128;
constexpr int64_t kTileStride = 144;  // kTileCells + 1 corners, in whole vectors
constexpr int kBlock = 16;            // pixels sampled together
constexpr int64_t kBandRows = 16;     // rows of cells that one thread walks down

inline float probability(float logit) {
  const float p = sigmoid(logit);
  return p == p ? p : 0.0f;
}

// The sources along one axis of an image, and the first output of every cell.
struct Axis {
  int64_t cells;
  int32_t* low;    // [size]
  float* weight;   // [size]
  int32_t* first;  // [cells + 1] outputs [first[c], first[c + 1]) lie in cell c
};

// The same for all images of a batch.
struct AxisStore {
  int64_t size, cells;
  int32_t* low;    // [B, size]
  float* weight;   // [B, size]
  int32_t* first;  // [B, cells + 1]

  Axis of_image(int64_t image, double extent) const {
    return {cells_within(extent), low + image * size, weight + image * size,
            first + image * (cells + 1)};
  }
};

struct Axes {
  AxisStore rows, columns;
};

inline AxisStore lay_out_axis(Arena& arena, int64_t images, int64_t cells, int64_t size) {
  return {size, cells, arena.take<int32_t>(images * size), arena.take<float>(images * size),
          arena.take<int32_t>(images * (cells + 1))};
}

inline Axes lay_out_axes(Arena& arena, const MapShape& shape) {
  const AxisStore rows = lay_out_axis(arena, shape.images, shape.rows, shape.height);
  return {rows, lay_out_axis(arena, shape.images, shape.columns, shape.width)};
}

inline void fill_axis(const AxisStore& store, int64_t image, double extent) {
  const Axis axis = store.of_image(image, extent);
  int64_t next = 0;
  for (int64_t i = 0; i < store.size; ++i) {
    const Source source = bilinear_source(i, store.size, extent);
    axis.low[i] = static_cast<int32_t>(source.low);
    axis.weight[i] = source.weight;
    while (next <= source.low) axis.first[next++] = static_cast<int32_t>(i);
  }
  while (next <= axis.cells) axis.first[next++] = static_cast<int32_t>(store.size);
}

inline void fill_axes(const Axes& axes, const MaskLogits& logits, const MapShape& shape) {
  for (int64_t image = 0; image < shape.images; ++image) {
    fill_axis(axes.rows, image, logits.region[2 * image]);
    fill_axis(axes.columns, image, logits.region[2 * image + 1]);
  }
}

// Pixels of one tile.
struct Rectangle {
  int64_t top, bottom, left, right;  // half-open

  int64_t pixels() const { return (bottom - top) * (right - left); }
};

struct Tile {
  int64_t image, row, column;  // its first cell
  int64_t cells;
  const int32_t* queries;  // [num_queries] that are loaded, in ascending order
  int64_t num_queries;
  bool sigmoid_first;  // sample probabilities instead of logits
  bool bounded;        // `prob` is wanted also where logits are sampled

  Axis rows, columns;  // of the image
  float* value;        // [num_queries, 2, kTileStride] what is sampled; grid row r is in r % 2
  float* prob;         // [num_queries, 2, kTileStride] its probability
  uint8_t* wild;       // [num_queries, 2] whether a logit is beyond kWild
  int64_t held[2];     // the grid rows that are loaded

  const float* value_row(int64_t n, int64_t corner) const { return value + offset(n, corner); }
  const float* prob_row(int64_t n, int64_t corner) const { return prob + offset(n, corner); }

  // The slot of the upper (0) or lower (1) corners.
  int64_t slot(int64_t corner) const { return std::min(row + corner, rows.cells - 1) % 2; }

  Rectangle pixels(int64_t first_cell, int64_t last_cell) const {
    return {rows.first[row], rows.first[row + 1], columns.first[column + first_cell],
            columns.first[column + last_cell]};
  }

 private:
  int64_t offset(int64_t n, int64_t corner) const { return (2 * n + slot(corner)) * kTileStride; }
};

// With room for `queries` of them.
inline Tile lay_out_tile(Arena& arena, int64_t queries, bool sigmoid_first) {
  Tile tile{};
  const int64_t values = queries * 2 * kTileStride;
  tile.sigmoid_first = sigmoid_first;
  tile.prob = arena.take<float>(values);
  tile.value = sigmoid_first ? tile.prob : arena.take<float>(values);
  tile.wild = arena.take<uint8_t>(queries * 2);
  return tile;
}

// Whether a value is beyond kWild.
template <typename Item>
bool load_row(const Item* __restrict source, int64_t count, float* __restrict value) {
  int32_t wild = 0;
  for (int64_t x = 0; x < count; ++x) {
    const float converted = to_float(source[x]);
    value[x] = converted;
    wild |= magnitude(converted) < kWild ? 0 : 1;
  }
  for (int64_t x = count; x < kTileStride; ++x) value[x] = value[count - 1];
  return wild != 0;
}

// Loads one row of the grid, in the tile's columns.
inline void load_grid_row(Tile& tile, const MaskLogits& logits, const MapShape& shape,
                          int64_t row) {
  const int64_t slot = row % 2;
  if (tile.held[slot] == row) return;
  tile.held[slot] = row;
  const int64_t count = std::min(tile.cells + 1, tile.columns.cells - tile.column);
  for (int64_t n = 0; n < tile.num_queries; ++n) {
    const int64_t query = tile.image * shape.queries + tile.queries[n];
    const int64_t held_row = query * logits.held_rows() + row - logits.first_row;
    const int64_t at = held_row * shape.columns + tile.column;
    float* value = tile.value + (2 * n + slot) * kTileStride;
    float* prob = tile.prob + (2 * n + slot) * kTileStride;
    as_type(logits.data, logits.type, [&](const auto* items) {
      tile.wild[2 * n + slot] = load_row(items + at, count, value);
    });
    if (!tile.sigmoid_first && !tile.bounded) continue;
    for (int64_t x = 0; x < kTileStride; ++x) prob[x] = probability(value[x]);
  }
}

// The tiles of an image are dealt out as strips: columns of tiles, kBandRows high.
inline int64_t strips_of_image(const MaskLogits& logits, const MapShape& shape) {
  return ((logits.rows_of_cells(shape.rows) + kBandRows - 1) / kBandRows) *
         ((shape.columns + kTileCells - 1) / kTileCells);
}

// Calls visit(tile) for every tile of an image's strip that holds pixels. tile.queries are the
// caller's.
template <typename Visit>
void walk(Tile& tile, int64_t image, int64_t strip, const Axes& axes, const MaskLogits& logits,
          const MapShape& shape, const Visit& visit) {
  const int64_t across = (shape.columns + kTileCells - 1) / kTileCells;
  const int64_t first_row = logits.first_row + strip / across * kBandRows;
  const int64_t last_row = logits.first_row + logits.rows_of_cells(shape.rows);
  tile.image = image;
  tile.rows = axes.rows.of_image(image, logits.region[2 * image]);
  tile.columns = axes.columns.of_image(image, logits.region[2 * image + 1]);
  tile.column = strip % across * kTileCells;
  tile.cells = std::min(kTileCells, tile.columns.cells - tile.column);
  tile.held[0] = tile.held[1] = -1;
  const int64_t end = std::min({first_row + kBandRows, last_row, tile.rows.cells});
  for (tile.row = first_row; tile.row < end; ++tile.row) {
    if (tile.cells <= 0 || tile.pixels(0, tile.cells).pixels() == 0) continue;
    load_grid_row(tile, logits, shape, tile.row);
    load_grid_row(tile, logits, shape, std::min(tile.row + 1, tile.rows.cells - 1));
    visit(tile);
  }
}

// Up to kBlock pixels of a tile; lanes past `count` repeat the first pixel.
struct Block {
  int count;
  int32_t column[kBlock];  // its cell in the tile
  float down[kBlock];      // weights
  float right[kBlock];
  int64_t pixel[kBlock];  // offset in the map
};

// Calls visit(block) for the pixels of a rectangle, row by row.
template <typename Visit>
void for_blocks(const Tile& tile, const Rectangle& area, int64_t width, const Visit& visit) {
  Block block;
  int64_t y = area.top, x = area.left;
  for (int64_t done = 0; done < area.pixels(); done += kBlock) {
    block.count = static_cast<int>(std::min<int64_t>(kBlock, area.pixels() - done));
    for (int lane = 0; lane < kBlock; ++lane) {
      const bool used = lane < block.count;
      block.column[lane] =
          used ? tile.columns.low[x] - static_cast<int32_t>(tile.column) : block.column[0];
      block.down[lane] = used ? tile.rows.weight[y] : block.down[0];
      block.right[lane] = used ? tile.columns.weight[x] : block.right[0];
      block.pixel[lane] = used ? y * width + x : block.pixel[0];
      if (used && ++x == area.right) {
        x = area.left;
        ++y;
      }
    }
    visit(block);
  }
}

inline int64_t blocks_of(const Rectangle& area) { return (area.pixels() + kBlock - 1) / kBlock; }

// Writes the value of every cell of a tile to its pixels of the map.
template <typename Item>
void fill_cells(const Tile& tile, const int32_t* value, const MapShape& shape, Item* map) {
  Item* image = map + tile.image * shape.height * shape.width;
  for (int64_t x = 0, end; x < tile.cells; x = end) {
    for (end = x + 1; end < tile.cells && value[end] == value[x];) ++end;
    const Rectangle area = tile.pixels(x, end);
    for (int64_t y = area.top; y < area.bottom; ++y) {
      Item* row = image + y * shape.width;
      std::fill(row + area.left, row + area.right, static_cast<Item>(value[x]));
    }
  }
}

// Samples one grid at a block's pixels; `upper` and `lower` are the tile's rows of it. In one cell
// the four corners are the same for all lanes.
template <bool OneCell>
void sample(const Block& block, const float* upper, const float* lower, float* __restrict value) {
  for (int lane = 0; lane < kBlock; ++lane) {
    const int32_t x = block.column[OneCell ? 0 : lane];
    const float down = block.down[lane];
    value[lane] = lerp(lerp(upper[x], lower[x], down), lerp(upper[x + 1], lower[x + 1], down),
                       block.right[lane]);
  }
}

template <bool OneCell>
void sample_probability(const Tile& tile, const Block& block, int64_t n, float* __restrict prob) {
  sample<OneCell>(block, tile.value_row(n, 0), tile.value_row(n, 1), prob);
  if (tile.sigmoid_first) return;
  for (int lane = 0; lane < kBlock; ++lane) prob[lane] = probability(prob[lane]);
}

}  // namespace
}  // namespace maskformer::cpu
