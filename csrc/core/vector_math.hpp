// Elementary functions for loops that the compiler turns into vector code, and for vectors (Real is
// float or, on the CPU, Register of cpu/float_lanes.hpp): no branch, no table, no call. Polynomials
// are minimax fits; NaN gives NaN. No structs: gcc does not vectorise an `omp simd` loop with one
// in it.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.hpp"

namespace maskformer {

template <typename To, typename From>
MASKFORMER_HD To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bits are copied");
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

// The unsigned integers that hold the bits of Real.
template <typename Real>
struct BitsOf {
  using type = uint32_t;
};

template <typename Real>
MASKFORMER_HD Real positive_part(Real x) {
  return x < 0.0f ? Real{} : x;
}

template <typename Real>
MASKFORMER_HD Real magnitude(Real x) {
  return bit_cast<Real>(bit_cast<typename BitsOf<Real>::type>(x) & 0x7FFFFFFFu);
}

// exp(x) for x <= 0, within 1.5 ulp; 0 where the result would be below 2^-126.
//   x = n ln 2 + r, |r| <= ln(2) / 2;   exp(r) = 1 + r + r^2 q(r), q of degree 4
template <typename Real>
MASKFORMER_HD Real exp_of_negative(Real x) {
  using Bits = typename BitsOf<Real>::type;
  constexpr float kLeast = -87.33654f;     // ln 2^-126
  constexpr float kLog2e = 1.44269504f;    // 1 / ln 2
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: added, it leaves n in the low bits
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  const Real shifted = x * kLog2e + kRounder;
  const Real n = shifted - kRounder;
  const Real r = (x - n * kLn2High) - n * kLn2Low;
  Real q = 1.38146093e-3f * r + 8.36871006e-3f;
  q = q * r + 4.16683890e-2f;
  q = q * r + 1.66665211e-1f;
  q = q * r + 4.99999940e-1f;
  const Real power = bit_cast<Real>((bit_cast<Bits>(shifted) << 23) + 0x3F800000u);  // 2^n
  const Real value = (q * (r * r) + r + 1.0f) * power;
  return x < kLeast ? Real{} : value;
}

// log(1 + e) for e in [0, 1], within 2 ulp: e + e^2 q(e), q of degree 7.
template <typename Real>
MASKFORMER_HD Real log_one_plus(Real e) {
  Real q = 5.37844049e-3f * e - 3.01223882e-2f;
  q = q * e + 7.93007463e-2f;
  q = q * e - 1.37623906e-1f;
  q = q * e + 1.91579476e-1f;
  q = q * e - 2.48583421e-1f;
  q = q * e + 3.33214819e-1f;
  q = q * e - 4.99996573e-1f;
  return q * (e * e) + e;
}

template <typename Real>
MASKFORMER_HD Real sigmoid(Real x) {
  const Real e = exp_of_negative(-magnitude(x));
  return (x < 0.0f ? e : Real{} + 1.0f) / (1.0f + e);
}

}  // namespace maskformer
