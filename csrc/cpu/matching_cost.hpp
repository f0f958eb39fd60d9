#pragma once

#include <cstddef>
#include <cstdint>

#include "core/float_types.hpp"
#include "cpu/instruction_set.hpp"
#include "cpu/target_runs.hpp"

namespace maskformer::cpu {

// Returns the number of runs.
template <InstructionSet Set>
int64_t grid_targets(const GridTargets& problem);

// What matching_sums reads and writes, for some cells of one image.
struct MatchingSums {
  const void* logits;  // [queries, cells], rows `stride` apart; or [cells, stride] float32
  FloatType type;      // of the logits
  bool cells_first;    // logits are [cells, stride], stride a multiple of kQueryBlock
  TargetRuns runs;
  double* sums;                                    // [2 T + 2, queries], added to
  int64_t queries, stride, start, cells, targets;  // logits begin at cell `start` of the grid
  float alpha, gamma;
  bool ignore_void;
};

// From the sums of B images, each with the probabilities of L layers, to their costs.
struct MatchingCost {
  const float* probs;  // [L, B, Q, classes]
  int64_t classes;
  const int64_t* labels;       // [B, T]
  const int32_t* num_targets;  // [B]
  const double* sums;          // [B, 2 T + 2, L, Q]
  const double* area;          // [B, T + 1], see GridTargets
  float* cost;                 // [L, B, T, Q]
  int64_t layers, images, queries, targets, cells;
  float class_weight, mask_weight, dice_weight;
  bool ignore_void;
};

template <InstructionSet Set>
void matching_cost(const MatchingCost& problem);

constexpr int64_t kQueryBlock = 16;  // queries are padded to a multiple of it

// Bytes of workspace, for all threads.
template <InstructionSet Set>
int64_t matching_sums_workspace(const MatchingSums& problem, int threads);

// See matching_cost.cpp. workspace: 64-byte aligned; threads >= 1.
template <InstructionSet Set>
void matching_sums(const MatchingSums& problem, std::byte* workspace, int threads);

}  // namespace maskformer::cpu
