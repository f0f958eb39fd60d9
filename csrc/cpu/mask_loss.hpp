#pragma once

#include <cstddef>
#include <cstdint>

#include "core/float_types.hpp"
#include "cpu/instruction_set.hpp"

namespace maskformer::cpu {

// What mask_loss reads and writes; arrays are contiguous.
struct MaskLoss {
  const void* logits;       // [N, T, h, w]
  FloatType type;           // of the logits
  const void* pixels;       // [B, H, W] int16 or [B, T, H, W] bool
  bool overlapping;         // pixels are bool
  const uint8_t* occupied;  // [B, H, W] bool: pixels that some mask covers; null: all count
  const uint8_t* valid;     // [N, T] bool
  float* focal;             // [N, T]
  float* dice;              // [N, T]
  float* slopes;            // [2, N, T, h, w] d focal / dx and d dice / dx; null: not wanted
  int64_t layers, images, targets, grid_height, grid_width, height, width;
  float alpha, gamma;
  bool ignore_void;
};

// Bytes of workspace, for all threads.
template <InstructionSet Set>
int64_t mask_loss_workspace(const MaskLoss& problem, int threads);

// See mask_loss.cpp. workspace: 64-byte aligned; threads >= 1.
template <InstructionSet Set>
void mask_loss(const MaskLoss& problem, std::byte* workspace, int threads);

}  // namespace maskformer::cpu
