// float16 and bfloat16, kept as their bits, to float32: exact, in operations that vectorise.
#pragma once

#include "core/vector_math.hpp"

namespace maskformer {

enum class FloatType : int { float32 = 0, float16 = 1, bfloat16 = 2 };

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

MASKFORMER_HD int64_t size_of(FloatType type) { return type == FloatType::float32 ? 4 : 2; }

MASKFORMER_HD float to_float(float value) { return value; }

MASKFORMER_HD float to_float(BFloat16 value) {
  return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

// The product moves the exponent's bias, of subnormal numbers too.
MASKFORMER_HD float to_float(Float16 value) {
  constexpr uint32_t kInfinity = 0x7c00u << 13, kInfinityOfFloat = 0x7f800000u;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t size = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t scaled = bit_cast<uint32_t>(bit_cast<float>(size) * 0x1p112f);
  return bit_cast<float>(sign | scaled | (size >= kInfinity ? kInfinityOfFloat : 0u));
}

// call(source as a pointer to its items)
template <typename Call>
MASKFORMER_HD void as_type(const void* source, FloatType type, const Call& call) {
  switch (type) {
    case FloatType::float32:
      return call(static_cast<const float*>(source));
    case FloatType::float16:
      return call(static_cast<const Float16*>(source));
    case FloatType::bfloat16:
      return call(static_cast<const BFloat16*>(source));
  }
}

// source[0 .. count) as float32.
MASKFORMER_HD void to_float32(const void* source, FloatType type, int64_t count,
                              float* __restrict out) {
  as_type(source, type, [=](const auto* __restrict items) {
    for (int64_t i = 0; i < count; ++i) out[i] = to_float(items[i]);
  });
}

}  // namespace maskformer
