// float16 and bfloat16 read as float32.
#pragma once

#include "core/vector_math.hpp"

namespace maskformer {

enum class FloatType : int { float32 = 0, float16 = 1, bfloat16 = 2 };

MASKFORMER_HD int64_t size_of(FloatType type) { return type == FloatType::float32 ? 4 : 2; }

MASKFORMER_HD float from_bfloat16(uint16_t bits) {
  return bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

MASKFORMER_HD float from_float16(uint16_t bits) {
  constexpr uint32_t kInfinity = 0x7C00u;
  constexpr float kBias = 0x1p112f;  // the exponent biases differ by 127 - 15
  const uint32_t exponent_and_mantissa = bits & 0x7FFFu;
  const uint32_t scaled = bit_cast<uint32_t>(bit_cast<float>(exponent_and_mantissa << 13) * kBias);
  const uint32_t non_finite = exponent_and_mantissa >= kInfinity ? 0x7F800000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  return bit_cast<float>(scaled | non_finite | sign);
}

// source[0 .. count) as float32.
MASKFORMER_HD void to_float32(const void* source, FloatType type, int64_t count,
                              float* __restrict out) {
  if (type == FloatType::float32) {
    std::memcpy(out, source, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const uint16_t* __restrict bits = static_cast<const uint16_t*>(source);
  if (type == FloatType::float16) {
    for (int64_t i = 0; i < count; ++i) out[i] = from_float16(bits[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = from_bfloat16(bits[i]);
  }
}

}  // namespace maskformer
