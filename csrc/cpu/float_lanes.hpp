// Sixteen float32 that the compiler keeps in registers, where sums over a long inner loop would
// otherwise go through memory. GCC and Clang split it where vectors are shorter.
#pragma once

#include <cstdint>
#include <cstring>

namespace maskformer::cpu {
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

}  // namespace
}  // namespace maskformer::cpu
