#pragma once

#include <cstddef>
#include <cstdint>

#include "core/map_shape.hpp"
#include "cuda/stream.hpp"

namespace maskformer::cuda {

// Bytes of workspace, in the memory of the GPU, for both of the following.
int64_t instance_masks_workspace(const MapShape& shape);

// See instance_masks.cu. wanted [B, Q]: mean [B, Q] and boxes [B, Q, 4] of the others are left as
// they are. workspace: 64-byte aligned, instance_masks_workspace() bytes.
void instance_statistics(const MaskLogits& logits, const uint8_t* wanted, float* mean,
                         int32_t* boxes, const MapShape& shape, std::byte* workspace,
                         Stream stream);

// After instance_statistics() with the same logits, shape, workspace and stream. query [count] in
// [0, B * Q) names the grids; masks: 16-byte aligned.
void instance_masks(const MaskLogits& logits, const int64_t* query, int64_t count, uint8_t* masks,
                    const MapShape& shape, std::byte* workspace, Stream stream);

}  // namespace maskformer::cuda
