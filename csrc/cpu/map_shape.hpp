// What the three maps have in common: the mask logits of a batch and the maps' size.
#pragma once

#include <cstdint>

#include "core/float_types.hpp"

namespace maskformer::cpu {

struct MapShape {
  int64_t images, queries, rows, columns;  // mask logits [B, Q, h, w]
  int64_t height, width;                   // of the maps
};

struct MaskLogits {
  const void* data;  // [B, Q, h, w]
  FloatType type;
  const double* region;  // [B, 2] rows and columns of the grid that each image covers
};

}  // namespace maskformer::cpu
