#pragma once

#include <cstddef>
#include <cstdint>

#include "core/map_shape.hpp"
#include "cpu/instruction_set.hpp"

namespace maskformer::cpu {

// Bytes of workspace for this many threads.
template <InstructionSet Set>
int64_t instance_masks_workspace(const MapShape& shape, int64_t count, int threads);

// See instance_masks.cpp. query [count] in [0, B * Q) names the grids; threads >= 1; workspace:
// 64-byte aligned, instance_masks_workspace() bytes.
template <InstructionSet Set>
void instance_statistics(const MaskLogits& logits, const int64_t* query, int64_t count, float* mean,
                         int32_t* boxes, const MapShape& shape, std::byte* workspace, int threads);

template <InstructionSet Set>
void instance_masks(const MaskLogits& logits, const int64_t* query, int64_t count, uint8_t* masks,
                    const MapShape& shape, std::byte* workspace, int threads);

}  // namespace maskformer::cpu
