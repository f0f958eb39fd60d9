// Bilinear sampling of a grid along one axis, without aligned corners: output i of n reads at
// y(i) = (i + 0.5) cells / n - 0.5 = ((2 i + 1) cells - n) / (2 n), in exact integers.
#pragma once

#include <cstdint>

#include "core/host_device.hpp"

namespace maskformer {

// (1 - weight) * grid[cell] + weight * grid[cell + 1], both indices clamped to the grid;
// -1 <= cell < cells.
struct BilinearTap {
  int64_t cell;
  float weight;
};

MASKFORMER_HD BilinearTap bilinear_tap(int64_t i, int64_t cells, int64_t outputs) {
  const int64_t numerator = (2 * i + 1) * cells - outputs, denominator = 2 * outputs;
  const int64_t cell = numerator < 0 ? -1 : numerator / denominator;
  const float rest = static_cast<float>(numerator - cell * denominator);
  return {cell, rest / static_cast<float>(denominator)};
}

}  // namespace maskformer
