// Focal terms of a mask logit x, the maths of maskformer_fast/ops/focal.py:
//
//   pos(x) = alpha       F(x)      cost of a pixel inside the target
//   neg(x) = (1 - alpha) F(-x)     cost of a pixel outside it
//   F(z)   = (1 - s)^gamma softplus(-z),   s = sigmoid(z)
//   F'(z)  = -(1 - s)^gamma (gamma s softplus(-z) + 1 - s)
//
// With gamma = 2, the published value, the power is a product; else it is
// (1 - s)^gamma = exp(-gamma softplus(z)).
#pragma once

#include "core/vector_math.hpp"

namespace maskformer {

constexpr float kSquare = 2.0f;  // the gamma that needs no exponential

// One side of a logit: z = x where the pixel is inside the target, -x where it is outside.
struct FocalSide {
  float wrong;     // 1 - s
  float right;     // s
  float softplus;  // softplus(-z)
  float other;     // softplus(z)
};

MASKFORMER_HD FocalSide focal_side(float z, const Logistic& parts) {
  const bool negative = z < 0.0f;
  return {negative ? parts.larger : parts.smaller, negative ? parts.smaller : parts.larger,
          positive_part(-z) + parts.log, positive_part(z) + parts.log};
}

// (1 - s)^gamma
template <bool Square>
MASKFORMER_HD float focal_power(const FocalSide& side, float gamma) {
  return Square ? side.wrong * side.wrong : exp_of_negative(-gamma * side.other);
}

}  // namespace maskformer
