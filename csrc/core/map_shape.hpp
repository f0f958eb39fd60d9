// What the three maps have in common: the mask logits of a batch and the maps' size.
#pragma once

#include <cstdint>

#include "core/float_types.hpp"

namespace maskformer {

struct MapShape {
  int64_t images, queries, rows, columns;  // mask logits [B, Q, h, w]
  int64_t height, width;                   // of the maps
};

struct MaskLogits {
  const void* data;  // [B, Q, h, w]
  FloatType type;
  const double* region;  // [B, 2] rows and columns of the grid that each image covers; CUDA: null
                         // means all of them
};

// A larger logit, or an infinite one, may sample to anything.
constexpr float kWild = 1e30f;

// What the bounds of a cell's outcome give away to rounding, relative. Ties are within it.
constexpr float kMargin = 1e-5f;

// Whether cells hold enough pixels for bounds to save more than they cost.
MASKFORMER_HD bool pays_to_bound(const MapShape& shape) {
  constexpr int64_t kPixels = 4;
  return shape.height * shape.width >= kPixels * shape.rows * shape.columns;
}

}  // namespace maskformer
