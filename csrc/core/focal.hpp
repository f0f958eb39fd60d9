// Focal terms of a mask logit x, the maths of maskformer_fast/ops/focal.py:
//
//   pos(x) = alpha       F(x)      cost of a pixel inside the target
//   neg(x) = (1 - alpha) F(-x)     cost of a pixel outside it
//   F(z)   = (1 - s)^gamma softplus(-z),   s = sigmoid(z)
//   F'(z)  = -(1 - s)^gamma (gamma s softplus(-z) + 1 - s)
//
// Loops get everything from e = exp(-|x|), 1 / (1 + e) = sigmoid(|x|) and log(1 + e) =
// softplus(-|x|): one exponential, one reciprocal, one logarithm.
#pragma once

#include "core/vector_math.hpp"

namespace maskformer {

constexpr float kSquare = 2.0f;  // the published gamma, whose power is a product

// softplus(z) from log(1 + exp(-|z|)).
template <typename Real>
MASKFORMER_HD Real softplus(Real z, Real log) {
  return positive_part(z) + log;
}

// (1 - s)^gamma = exp(-gamma softplus(z)) from wrong = 1 - s and softplus(z).
template <bool Square, typename Real>
MASKFORMER_HD Real focal_power(Real wrong, Real softplus, float gamma) {
  return Square ? wrong * wrong : exp_of_negative(-gamma * softplus);
}

}  // namespace maskformer
