// Vectors of float64, as wide as the registers of the instruction set that is compiled for, and of
// float32, as many. Only for what cannot depend on that width: least values and their places,
// never sums. In a namespace without a name: the linker must not let one instruction set call what
// another was given.
#pragma once

#include <cstdint>
#include <cstring>
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
typedef int64_t BitLanes __attribute__((vector_size(kLanes * sizeof(double)), may_alias));
typedef float FloatLanes __attribute__((vector_size(kLanes * sizeof(float)), may_alias));
typedef int32_t FloatBitLanes __attribute__((vector_size(kLanes * sizeof(float)), may_alias));

// kLanes entries of a float32 or float64 array, and integers of their size.
template <typename Item>
struct VectorOf {
  typedef Lanes Values;
  typedef BitLanes Bits;
};
template <>
struct VectorOf<float> {
  typedef FloatLanes Values;
  typedef FloatBitLanes Bits;
};

inline Lanes all(double value) { return value - Lanes{}; }

inline FloatLanes all(float value) { return value - FloatLanes{}; }

inline Lanes load(const double* from) { return *reinterpret_cast<const Lanes*>(from); }

inline Lanes load(const float* from) {
#ifdef __AVX512F__
  constexpr __mmask8 kAll = 0xff;
  return _mm512_maskz_cvtps_pd(kAll, _mm256_load_ps(from));  // the other is two halves in GCC 12
#else
  return __builtin_convertvector(*reinterpret_cast<const FloatLanes*>(from), Lanes);
#endif
}

inline BitLanes load(const int64_t* from) { return *reinterpret_cast<const BitLanes*>(from); }

inline void store(double* to, Lanes value) { *reinterpret_cast<Lanes*>(to) = value; }

// As they are, from any address.
template <typename Item>
typename VectorOf<Item>::Values load_unaligned(const Item* from) {
  typename VectorOf<Item>::Values values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

// The first `count` < kLanes lanes from any address, the others from `rest`.
inline Lanes load_part(const double* from, int64_t count, Lanes rest) {
#ifdef __AVX512F__
  return _mm512_mask_loadu_pd(rest, static_cast<__mmask8>((1 << count) - 1), from);
#else
  for (int64_t lane = 0; lane < count; ++lane) rest[lane] = from[lane];
  return rest;
#endif
}

inline FloatLanes load_part(const float* from, int64_t count, FloatLanes rest) {
#ifdef __AVX512VL__
  return _mm256_mask_loadu_ps(rest, static_cast<__mmask8>((1 << count) - 1), from);
#else
  for (int64_t lane = 0; lane < count; ++lane) rest[lane] = from[lane];
  return rest;
#endif
}

using maskformer::larger;  // of two numbers
using maskformer::smaller;

// Of NaN and b they give b. (GCC 12 does not always see one instruction in a > b ? a : b.)
inline Lanes smaller(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return _mm512_maskz_min_pd(0xff, a, b);
#elif defined(__AVX__)
  return _mm256_min_pd(a, b);
#else
  return a < b ? a : b;
#endif
}

inline Lanes larger(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_pd(0xff, a, b);
#elif defined(__AVX__)
  return _mm256_max_pd(a, b);
#else
  return a > b ? a : b;
#endif
}

inline FloatLanes smaller(FloatLanes a, FloatLanes b) { return a < b ? a : b; }

template <typename Vector>
auto least_of_lanes(Vector value) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) {
      value[lane] = smaller(value[lane], value[lane + half]);
    }
  }
  return value[0];
}

inline double least(Lanes value) {
#ifdef __AVX512F__
  constexpr __mmask8 kAll = 0xff;  // without a mask GCC 12 warns of what its own header does
  const __m256d four = _mm256_min_pd(_mm512_maskz_extractf64x4_pd(kAll, value, 0),
                                     _mm512_maskz_extractf64x4_pd(kAll, value, 1));
#elif defined(__AVX__)
  const __m256d four = value;
#endif
#ifdef __AVX__
  const __m128d two = _mm_min_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_min_sd(two, _mm_unpackhi_pd(two, two)));
#else
  return least_of_lanes(value);
#endif
}

inline float least(FloatLanes value) {
#ifdef __AVX512F__
  const __m128 four = _mm_min_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
#elif defined(__AVX__)
  const __m128 four = value;
#endif
#ifdef __AVX__
  const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
#else
  return least_of_lanes(value);
#endif
}

// Bit `lane` says that a == b there.
inline int equal_lanes(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ);
#elif defined(__AVX__)
  return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_EQ_OQ));
#else
  return (a[0] == b[0] ? 1 : 0) | (a[1] == b[1] ? 2 : 0);
#endif
}

inline int equal_lanes(FloatLanes a, FloatLanes b) {
#if defined(__AVX512F__)
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ));
#elif defined(__AVX__)
  return _mm_movemask_ps(_mm_cmp_ps(a, b, _CMP_EQ_OQ));
#else
  return (a[0] == b[0] ? 1 : 0) | (a[1] == b[1] ? 2 : 0);
#endif
}

// 0, 1, 2, ...
template <typename Vector>
Vector first_indices() {
  Vector index{};
  for (int64_t lane = 0; lane < kLanes; ++lane) index[lane] = lane;
  return index;
}

// array[index] = value. The whole vector is written: a vector load that follows a narrower store
// would wait for it.
inline void replace(double* array, int64_t index, double value) {
  double* start = array + index / kLanes * kLanes;
  const BitLanes place = BitLanes{} + index % kLanes;
  store(start, first_indices<BitLanes>() == place ? all(value) : load(start));
}

// The least value that was taken in, and the lowest index at which it was.
template <typename Item>
class Least {
 public:
  using Values = typename VectorOf<Item>::Values;
  using Bits = typename VectorOf<Item>::Bits;

  void take(Values value) {
    at_ = value < value_ ? index_ : at_;
    value_ = smaller(value, value_);  // a minimum, which does not wait for that comparison
    index_ += kLanes;
  }
  Item value() const { return least(value_); }
  int64_t index() const {
    int64_t lowest = std::numeric_limits<int64_t>::max();
    for (int lanes = equal_lanes(value_, all(value())); lanes != 0; lanes &= lanes - 1) {
      const int64_t index = at_[__builtin_ctz(lanes)];
      lowest = index < lowest ? index : lowest;
    }
    return lowest;
  }

 private:
  Values value_ = all(std::numeric_limits<Item>::infinity());
  Bits at_ = first_indices<Bits>(), index_ = at_;
};

}  // namespace
}  // namespace maskformer::cpu
