// Bilinear sampling of mask grids: where an output reads, and what it gets.
#pragma once

#include <cstdint>

#include "core/host_device.hpp"

namespace maskformer {

// An output lies between the cells `low` and min(low + 1, last), at `weight` of the way.
struct Source {
  int64_t low;
  float weight;
};

// The cells that cover `extent` of them, which may be fractional.
MASKFORMER_HD int64_t cells_within(double extent) {
  const int64_t whole = static_cast<int64_t>(extent);
  return whole + (static_cast<double>(whole) < extent ? 1 : 0);
}

// Output i of `size` over the first `extent` cells of a grid, align_corners=False:
// ((2 i + 1) extent - size) / (2 size), clamped to the cells. The numerator is exact in float64
// (an integer, or a product of 24 with at most 29 bits), so the weight is rounded once.
MASKFORMER_HD Source bilinear_source(int64_t i, int64_t size, double extent) {
  const double step = 2.0 * static_cast<double>(size);
  const double most = static_cast<double>(cells_within(extent) - 1) * step;
  double numerator = static_cast<double>(2 * i + 1) * extent - static_cast<double>(size);
  numerator = numerator < 0.0 ? 0.0 : (numerator > most ? most : numerator);
  const int64_t low = static_cast<int64_t>(numerator / step);
  const double remainder = numerator - static_cast<double>(low) * step;
  return {low, static_cast<float>(remainder) / static_cast<float>(step)};
}

// From the nearer end, as torch.lerp does it: exact at both ends.
MASKFORMER_HD float lerp(float a, float b, float weight) {
  const bool near_a = weight < 0.5f;
  return (near_a ? weight : weight - 1.0f) * (b - a) + (near_a ? a : b);
}

}  // namespace maskformer
