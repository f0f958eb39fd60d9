// What the three maps have in common: the mask logits of a batch and the maps' size.
#pragma once

#include <cstdint>

#include "core/float_types.hpp"

namespace maskformer {

struct MapShape {
  int64_t images, queries, rows, columns;  // mask logits [B, Q, h, w]
  int64_t height, width;                   // of the maps
  bool prune = true;                       // false: score everything, to see what bounds gain
};

struct MaskLogits {
  const void* data;  // [B, Q, last_row - first_row, w]; CUDA: [B, Q, h, w]
  FloatType type;
  const double* region;  // [B, 2] rows and columns of the grid that each image covers; CUDA: null
                         // means all of them
  // CPU: the rows of the grid that are in memory. Cells between two of them are walked over, and
  // those below the grid's last row if that is among them.
  int64_t first_row = 0, last_row = 0;

  int64_t held_rows() const { return last_row - first_row; }
  int64_t rows_of_cells(int64_t rows) const { return held_rows() - (last_row < rows ? 1 : 0); }
};

// A larger logit, or an infinite one, may sample to anything.
constexpr float kWild = 1e30f;

// What the bounds of a cell's outcome give away to rounding, relative. Ties are within it.
constexpr float kMargin = 1e-5f;

// Whether cells hold enough pixels for bounds to save more than they cost.
MASKFORMER_HD bool pays_to_bound(const MapShape& shape) {
  constexpr int64_t kPixels = 4;
  return shape.prune && shape.height * shape.width >= kPixels * shape.rows * shape.columns;
}

}  // namespace maskformer
