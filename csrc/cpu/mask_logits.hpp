#pragma once

#include <cstdint>

#include "cpu/instruction_set.hpp"

namespace maskformer::cpu {

// See mask_logits.cpp. threads >= 1.
template <InstructionSet Set>
void sigmoid_in_place(float* x, int64_t count, int threads);

template <InstructionSet Set>
void sigmoid_backward_in_place(float* x, const float* grad, int64_t count, int threads);

}  // namespace maskformer::cpu
