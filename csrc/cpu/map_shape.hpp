// What the three maps have in common: the mask logits of a batch and the maps' size.
#pragma once

#include <cstdint>

#include "core/float_types.hpp"

namespace maskformer::cpu {

struct MapShape {
  int64_t images, queries, rows, columns;  // mask logits [B, Q, h, w]
  int64_t height, width;                   // of the maps
  bool prune = true;                       // false: score everything, to see what bounds gain
};

struct MaskLogits {
  const void* data;  // [B, Q, last_row - first_row, w]
  FloatType type;
  const double* region;  // [B, 2] rows and columns of the grid that each image covers
  // The rows of the grid that are in memory. Cells between two of them are walked over, and those
  // below the grid's last row if that is among them.
  int64_t first_row, last_row;

  int64_t held_rows() const { return last_row - first_row; }
  int64_t rows_of_cells(int64_t rows) const { return held_rows() - (last_row < rows ? 1 : 0); }
};

}  // namespace maskformer::cpu
