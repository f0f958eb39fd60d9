// Vectors of float64, as wide as the registers of the instruction set that is compiled for. Only
// for what cannot depend on that width: least values and their places, never sums. In a namespace
// without a name: the linker must not let one instruction set call what another was given.
#pragma once

#include <cstdint>
#include <limits>

#ifdef __AVX__
#include <immintrin.h>
#endif

#include "core/linear_assignment.hpp"

namespace maskformer::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 8;
#elif defined(__AVX__)
constexpr int64_t kLanes = 4;
#else
constexpr int64_t kLanes = 2;
#endif

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Vector types of GCC and Clang: operators and ?: work lane by lane.
typedef double Lanes __attribute__((vector_size(kLanes * sizeof(double)), may_alias));
typedef float FloatLanes __attribute__((vector_size(kLanes * sizeof(float)), may_alias));

inline Lanes all(double value) { return value - Lanes{}; }

inline Lanes load(const double* from) { return *reinterpret_cast<const Lanes*>(from); }

inline Lanes load(const float* from) {
#ifdef __AVX512F__
  constexpr __mmask8 kAll = 0xff;
  return _mm512_maskz_cvtps_pd(kAll, _mm256_load_ps(from));  // the other is two halves in GCC 12
#else
  return __builtin_convertvector(*reinterpret_cast<const FloatLanes*>(from), Lanes);
#endif
}

inline void store(double* to, Lanes value) { *reinterpret_cast<Lanes*>(to) = value; }

using maskformer::smaller;  // of two numbers

inline Lanes smaller(Lanes a, Lanes b) { return a < b ? a : b; }

inline double least(Lanes value) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) {
      value[lane] = smaller(value[lane], value[lane + half]);
    }
  }
  return value[0];
}

// 0, 1, 2, ...
inline Lanes first_indices() {
  Lanes index{};
  for (int64_t lane = 0; lane < kLanes; ++lane) index[lane] = static_cast<double>(lane);
  return index;
}

// array[index] = value. The whole vector is written: a vector load that follows a narrower store
// would wait for it.
inline void replace(double* array, int64_t index, double value) {
  double* start = array + index / kLanes * kLanes;
  store(start,
        first_indices() == all(static_cast<double>(index % kLanes)) ? all(value) : load(start));
}

// The lowest index at which the array [size] holds `value`; 0 if it does not. Whole vectors only.
inline int64_t index_of(double value, const double* array, int64_t size) {
  for (int64_t start = 0; start < size; start += kLanes) {
    const Lanes lanes = load(array + start);
#if defined(__AVX512F__)
    const int found = _mm512_cmp_pd_mask(lanes, all(value), _CMP_EQ_OQ);
#elif defined(__AVX__)
    const int found = _mm256_movemask_pd(_mm256_cmp_pd(lanes, all(value), _CMP_EQ_OQ));
#else
    const int found = (lanes[0] == value ? 1 : 0) | (lanes[1] == value ? 2 : 0);
#endif
    if (found != 0) return start + __builtin_ctz(found);
  }
  return 0;
}

// The least value that was taken in, and the lowest index at which it was.
class Least {
 public:
  void take(Lanes value) {
    at_ = value < value_ ? index_ : at_;
    value_ = smaller(value_, value);  // a minimum, which does not wait for that comparison
    index_ += all(static_cast<double>(kLanes));
  }
  int64_t index() const {
    return static_cast<int64_t>(least(value_ == all(least(value_)) ? at_ : all(kInfinity)));
  }

 private:
  Lanes value_ = all(kInfinity), at_{}, index_ = first_indices();
};

}  // namespace
}  // namespace maskformer::cpu
