// What the kernels of the maps have in common: tiles of pixels, and the grid cells under them.
//
// Cell (y, x) has the corners (y, x), (y, x+1), (y+1, x), (y+1, x+1) of the mask grid, clamped to
// the last row and column of the image's region; it holds the pixels whose Source says so. A tile
// is a rectangle of pixels, so its work does not depend on the scale: TileAxis, one for its rows
// and one for its columns, says where they read. Up to ceil(Size * cells / size) + 1 cells lie
// under a tile. Inside a cell a sampled value lies between the cell's corners, and so does its
// sigmoid: the bounds.
#pragma once

#include "core/map_shape.hpp"
#include "core/sampling.hpp"
#include "cuda/intrinsics.cuh"

namespace maskformer::cuda {

// The rows and columns of the grid that an image covers.
struct Extent {
  double rows, columns;
};

// A region that nobody could check, since it lies on the GPU: one that is off is the whole grid.
__device__ inline Extent extent_of(const double* region, const MapShape& shape, int64_t image) {
  const double rows = static_cast<double>(shape.rows), columns = static_cast<double>(shape.columns);
  if (region == nullptr) return {rows, columns};
  const double r = region[2 * image], c = region[2 * image + 1];
  return {r > 0 && r <= rows ? r : rows, c > 0 && c <= columns ? c : columns};
}

// The most cells under `outputs` neighbours, in an axis of `size` outputs over `cells`.
inline int64_t most_cells(int64_t outputs, int64_t cells, int64_t size) {
  const int64_t most = (outputs * cells + size - 1) / size + 1;
  return most < cells ? most : cells;
}

// One axis of a tile, in shared memory.
template <int Size>
struct TileAxis {
  int64_t first;       // output
  int32_t outputs;     // up to Size
  int32_t last;        // cell of the image
  int32_t low[Size];   // the cell of an output, ascending
  float weight[Size];  // see Source

  // By the threads from `first_thread` on, Size of them; a barrier must follow.
  __device__ void fill(int64_t first_output, int64_t size, double extent, int first_thread) {
    const int i = static_cast<int>(threadIdx.x) - first_thread;
    if (i < 0 || i >= Size) return;
    if (i == 0) {
      first = first_output;
      outputs = static_cast<int32_t>(size - first_output < Size ? size - first_output : Size);
      last = static_cast<int32_t>(cells_within(extent) - 1);
    }
    if (first_output + i >= size) return;
    const Source source = bilinear_source(first_output + i, size, extent);
    low[i] = static_cast<int32_t>(source.low);
    weight[i] = source.weight;
  }

  __device__ int32_t cells() const { return low[outputs - 1] - low[0] + 1; }

  // The tile's first output in a cell of the grid or beyond it.
  __device__ int32_t first_in(int32_t cell) const {
    int32_t from = 0, to = outputs;
    while (from < to) {
      const int32_t middle = (from + to) / 2;
      if (low[middle] < cell) {
        from = middle + 1;
      } else {
        to = middle;
      }
    }
    return from;
  }
};

// Where the corners of a cell lie in a grid [rows, columns].
struct CellOffsets {
  int64_t upper_left;
  int64_t down;   // to the lower corners: columns, or 0 in the last row
  int32_t right;  // to the right corners: 1, or 0 in the last column
};

template <int Rows, int Columns>
__device__ CellOffsets cell_offsets(const TileAxis<Rows>& rows, const TileAxis<Columns>& columns,
                                    int32_t row, int32_t column, int64_t grid_columns) {
  return {row * grid_columns + column, row < rows.last ? grid_columns : 0,
          column < columns.last ? 1 : 0};
}

struct Corners {
  float upper_left, upper_right, lower_left, lower_right;
};

template <typename Item>
__device__ __forceinline__ Corners load_corners(const Item* grid, const CellOffsets& cell) {
  const Item* upper = grid + cell.upper_left;
  const Item* lower = upper + cell.down;
  return {to_float(upper[0]), to_float(upper[cell.right]), to_float(lower[0]),
          to_float(lower[cell.right])};
}

__device__ __forceinline__ float least(const Corners& c) {
  return fminf(fminf(c.upper_left, c.upper_right), fminf(c.lower_left, c.lower_right));
}

__device__ __forceinline__ float most(const Corners& c) {
  return fmaxf(fmaxf(c.upper_left, c.upper_right), fmaxf(c.lower_left, c.lower_right));
}

// Whether nothing is known of what lies between: a corner is NaN, infinite or huge.
__device__ __forceinline__ bool is_wild(const Corners& c) {
  const float sum =
      fabsf(c.upper_left) + fabsf(c.upper_right) + fabsf(c.lower_left) + fabsf(c.lower_right);
  return !(sum < kWild);
}

// Rows first, as the reference does it.
__device__ __forceinline__ float sample(const Corners& c, float down, float right) {
  return lerp(lerp(c.upper_left, c.lower_left, down), lerp(c.upper_right, c.lower_right, down),
              right);
}

// sigmoid(logit) within 3 ulp, 1/2 exactly at 0; 0 for NaN. One exp2 and one reciprocal of the
// special function unit: the refined reciprocal of [1, 2] needs no case distinctions.
__device__ __forceinline__ float probability(float logit) {
  const float e = expf(-fabsf(logit));
  const float sum = 1.0f + e;
  const float rough = rough_reciprocal(sum);
  const float reciprocal = fmaf(fmaf(-sum, rough, 1.0f), rough, rough);
  const float p = (logit < 0.0f ? e : 1.0f) * reciprocal;
  return p == p ? p : 0.0f;
}

__device__ __forceinline__ Corners probability(const Corners& c) {
  return {probability(c.upper_left), probability(c.upper_right), probability(c.lower_left),
          probability(c.lower_right)};
}

}  // namespace maskformer::cuda
