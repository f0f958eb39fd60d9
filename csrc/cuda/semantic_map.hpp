#pragma once

#include <cstddef>
#include <cstdint>

#include "core/map_shape.hpp"
#include "cuda/stream.hpp"

namespace maskformer::cuda {

struct ClassProbabilities {
  int64_t classes;
  const float* all;  // [B, Q, K + 1], finite and >= 0; the last is not looked at
};

struct LabelMap {
  void* labels;   // [B, H, W]
  int bytes;      // of a label: 1, 2, 4 or 8
  float* scores;  // [B, H, W] or null
};

// Bytes of workspace, in the memory of the GPU.
int64_t semantic_map_workspace(const MapShape& shape, int64_t classes);

// See semantic_map.cu. Labels hold K - 1; workspace: 64-byte aligned, semantic_map_workspace()
// bytes. Throws std::invalid_argument where the classes do not fit shared memory.
void semantic_map(const MaskLogits& logits, const ClassProbabilities& probs, const LabelMap& map,
                  const MapShape& shape, bool sigmoid_first, std::byte* workspace, Stream stream);

}  // namespace maskformer::cuda
