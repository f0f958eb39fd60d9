// Sixteen float32 that the compiler keeps in registers, where sums over a long inner loop would
// otherwise go through memory. GCC and Clang split it where vectors are shorter.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/vector_math.hpp"

namespace maskformer {
namespace cpu {
namespace {

constexpr int64_t kLanes = 16;

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// sum[v] += weight * row[v] over Count vectors that begin at `row`.
template <int Count>
inline void add_scaled(Lanes (&sum)[Count], float weight, const float* row) {
  for (int v = 0; v < Count; ++v) {
    Lanes values;
    std::memcpy(&values, row + v * kLanes, sizeof(values));
    sum[v] += weight * values;
  }
}

template <int Count>
inline void store(const Lanes (&sum)[Count], float* row) {
  std::memcpy(row, sum, sizeof(sum));
}

// As many float32 as one vector register holds: gcc splits comparisons of longer ones badly.
#if defined(__AVX512F__)
constexpr int64_t kRegister = 16;
#elif defined(__AVX2__)
constexpr int64_t kRegister = 8;
#else
constexpr int64_t kRegister = 4;
#endif

typedef float Register __attribute__((vector_size(kRegister * sizeof(float))));
typedef uint32_t RegisterBits __attribute__((vector_size(kRegister * sizeof(float))));

inline Register load_register(const float* row) {
  Register values;
  std::memcpy(&values, row, sizeof(values));
  return values;
}

inline void add_to(float* row, Register values) {
  values += load_register(row);
  std::memcpy(row, &values, sizeof(values));
}

}  // namespace
}  // namespace cpu

template <>
struct BitsOf<cpu::Register> {
  using type = cpu::RegisterBits;
};

}  // namespace maskformer
