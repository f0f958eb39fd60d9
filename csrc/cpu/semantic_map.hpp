#pragma once

#include <cstddef>
#include <cstdint>

#include "core/map_shape.hpp"
#include "cpu/instruction_set.hpp"

namespace maskformer::cpu {

struct ClassProbabilities {
  int64_t classes;
  const float* all;     // [B, K, Q], finite and >= 0
  const float* large;   // [B, K, Q] the entries that the bounds look at, 0 for the others
  const float* others;  // [B, K] the sum of the entries that they do not
};

// Bytes of workspace for this many threads.
template <InstructionSet Set>
int64_t semantic_map_workspace(const MapShape& shape, int64_t classes, bool sigmoid_first,
                               int threads);

// See semantic_map.cpp. Label is an unsigned integer that holds K - 1; scores may be null; threads
// >= 1; workspace: 64-byte aligned, semantic_map_workspace() bytes.
template <InstructionSet Set, typename Label>
void semantic_map(const MaskLogits& logits, const ClassProbabilities& probs, Label* labels,
                  float* scores, const MapShape& shape, bool sigmoid_first, std::byte* workspace,
                  int threads);

}  // namespace maskformer::cpu
