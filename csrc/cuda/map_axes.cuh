// Where the pixels of the maps read: tables along both axes of every image, which a kernel fills
// once, so that no pixel divides in float64. Cells, corners and pixels are those of
// map_tiles.cuh.
#pragma once

#include "core/arena.hpp"
#include "core/map_shape.hpp"
#include "core/sampling.hpp"
#include "cuda/map_tiles.cuh"

namespace maskformer::cuda {
namespace {

struct AxisTable {
  int64_t size, cells;
  int32_t* low;    // [B, size]
  float* weight;   // [B, size]
  int32_t* first;  // [B, cells + 1] outputs [first[c], first[c + 1]) lie in cell c
  int32_t* last;   // [B] cell

  __device__ int32_t low_at(int64_t image, int32_t output) const {
    return low[image * size + output];
  }
  __device__ float weight_at(int64_t image, int32_t output) const {
    return weight[image * size + output];
  }
  __device__ int32_t first_in(int64_t image, int32_t cell) const {
    return first[image * (cells + 1) + cell];
  }
};

struct MapAxes {
  AxisTable rows, columns;
};

inline AxisTable lay_out_axis(Arena& arena, int64_t images, int64_t cells, int64_t size) {
  return {size,
          cells,
          arena.take<int32_t>(images * size),
          arena.take<float>(images * size),
          arena.take<int32_t>(images * (cells + 1)),
          arena.take<int32_t>(images)};
}

inline MapAxes lay_out_axes(Arena& arena, const MapShape& shape) {
  const AxisTable rows = lay_out_axis(arena, shape.images, shape.rows, shape.height);
  return {rows, lay_out_axis(arena, shape.images, shape.columns, shape.width)};
}

// Threads that fill_axes takes.
MASKFORMER_HD int64_t axis_outputs(const MapShape& shape) {
  return shape.images * (shape.height + shape.width);
}

// Output i of one image, and the cells whose first output it is.
__device__ inline void fill_output(const AxisTable& table, int64_t image, int64_t i,
                                   double extent) {
  const int64_t before = i == 0 ? -1 : bilinear_source(i - 1, table.size, extent).low;
  const Source source = bilinear_source(i, table.size, extent);
  table.low[image * table.size + i] = static_cast<int32_t>(source.low);
  table.weight[image * table.size + i] = source.weight;
  int32_t* first = table.first + image * (table.cells + 1);
  for (int64_t cell = before + 1; cell <= source.low; ++cell) first[cell] = static_cast<int32_t>(i);
  if (i + 1 < table.size) return;
  const int64_t end = cells_within(extent);
  table.last[image] = static_cast<int32_t>(end - 1);
  for (int64_t cell = source.low + 1; cell <= end; ++cell) {
    first[cell] = static_cast<int32_t>(table.size);
  }
}

// Thread `index` of axis_outputs().
__device__ inline void fill_axes(const MapAxes& axes, const double* region, const MapShape& shape,
                                 int64_t index) {
  const int64_t image = index / (shape.height + shape.width);
  const int64_t i = index % (shape.height + shape.width);
  const Extent extent = extent_of(region, shape, image);
  if (i < shape.height) {
    fill_output(axes.rows, image, i, extent.rows);
  } else {
    fill_output(axes.columns, image, i - shape.height, extent.columns);
  }
}

// Inside a cell: 0 <= down, right <= 1 from its upper left corner; `row` from one row of corners to
// the next. Rows first, as the reference does it.
__device__ inline float sample(const float* corner, int32_t row, float down, float right) {
  return sample(Corners{corner[0], corner[1], corner[row], corner[row + 1]}, down, right);
}

}  // namespace
}  // namespace maskformer::cuda
