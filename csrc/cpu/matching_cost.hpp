#pragma once

#include <cstddef>
#include <cstdint>

#include "core/float_types.hpp"
#include "cpu/instruction_set.hpp"

namespace maskformer::cpu {

// Which targets cover which cells of the mask grid, for one image.
struct GridTargets {
  const void* pixels;  // [H, W] int16 or [T, H, W] bool
  bool overlapping;    // pixels are bool
  int64_t targets, height, width, grid_height, grid_width;
  int32_t* first;   // [h * w + 1] where each cell's targets start in `target`
  int16_t* target;  // [h * w], or [T * h * w] if overlapping
  double* area;     // [T] cells that each target covers
};

template <InstructionSet Set>
void grid_targets(const GridTargets& problem);

// What matching_sums reads and writes, for some cells of one image.
struct MatchingSums {
  const void* logits;     // [queries, cells], rows `stride` apart; or [cells, stride] float32
  FloatType type;         // of the logits
  bool cells_first;       // logits are [cells, stride], stride a multiple of kQueryBlock
  const int32_t* first;   // [cells + 1], see GridTargets
  const int16_t* target;  // what `first` points into
  double* sums;           // [2 T + 2, queries], added to
  int64_t queries, stride, cells, targets;
  float alpha, gamma;
  bool ignore_void;
};

constexpr int64_t kQueryBlock = 16;  // queries are padded to a multiple of it

// Bytes of workspace, for all threads.
template <InstructionSet Set>
int64_t matching_sums_workspace(const MatchingSums& problem, int threads);

// See matching_cost.cpp. workspace: 64-byte aligned; threads >= 1.
template <InstructionSet Set>
void matching_sums(const MatchingSums& problem, std::byte* workspace, int threads);

}  // namespace maskformer::cpu
