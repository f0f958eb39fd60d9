// float16 and bfloat16, kept as their bits, to float32: exact, in operations that vectorise.
#pragma once

#include <cstdint>

#include "core/host_device.hpp"
#include "core/vector_math.hpp"

namespace maskformer {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

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

}  // namespace maskformer
