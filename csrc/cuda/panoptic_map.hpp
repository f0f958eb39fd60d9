#pragma once

#include <cstddef>
#include <cstdint>

#include "core/panoptic.hpp"
#include "cuda/stream.hpp"

namespace maskformer::cuda {

// Classes as bits, passed to a kernel by value: no copy to the GPU, no host memory to keep.
struct ThingClasses {
  static constexpr int64_t kMost = 16384;
  uint32_t words[kMost / 32];

  MASKFORMER_HOST_DEVICE bool contains(int64_t label) const {
    return (words[label / 32] >> (label % 32) & 1u) != 0;
  }
};

struct ClassLogits {
  const void* data;  // [B, Q, K+1], of the type of the mask logits
  int64_t classes;   // K <= ThingClasses::kMost
};

struct PanopticOutput {
  int32_t* segments;          // [B, H, W]
  int32_t* segment_of_query;  // [B, Q]
  int32_t* area;              // [B, Q]
  float* score;               // [B, Q]
  int64_t* label;             // [B, Q]
};

// Bytes of workspace.
int64_t panoptic_map_workspace(int64_t images, int64_t queries, int64_t classes);

// See panoptic_map.cu. workspace: 64-byte aligned, panoptic_map_workspace() bytes.
void panoptic_map(const ClassLogits& class_logits, const MaskLogits& mask_logits,
                  const ThingClasses& things, const PanopticRules& rules,
                  const PanopticOutput& output, const MapShape& shape, std::byte* workspace,
                  Stream stream);

}  // namespace maskformer::cuda
