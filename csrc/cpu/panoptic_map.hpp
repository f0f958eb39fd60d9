#pragma once

#include <cstddef>
#include <cstdint>

#include "core/map_shape.hpp"
#include "core/panoptic.hpp"
#include "cpu/instruction_set.hpp"

namespace maskformer::cpu {

struct ClassifiedQueries {
  int64_t classes;          // K
  const float* score;       // [B, Q], not NaN
  const int64_t* label;     // [B, Q] in [0, K], K is "no object"
  const uint8_t* is_thing;  // [K]
};

struct PanopticOutput {
  int32_t* segments;          // [B, H, W]
  int32_t* segment_of_query;  // [B, Q]
  int32_t* area;              // [B, Q]
};

// Bytes of workspace for this many threads.
template <InstructionSet Set>
int64_t panoptic_map_workspace(const MapShape& shape, int64_t classes, bool sigmoid_first,
                               int threads);

// See panoptic_map.cpp. threads >= 1; workspace: 64-byte aligned, panoptic_map_workspace() bytes.
template <InstructionSet Set>
void panoptic_map(const MaskLogits& logits, const ClassifiedQueries& queries,
                  const PanopticRules& rules, const PanopticOutput& output, const MapShape& shape,
                  std::byte* workspace, int threads);

}  // namespace maskformer::cpu
