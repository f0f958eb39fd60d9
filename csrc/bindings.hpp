// What bindings.cpp and bindings_cuda.cpp share; with them the only files that know pybind11.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/map_shape.hpp"

namespace py = pybind11;

namespace maskformer {

template <typename Item>
Item* pointer(uintptr_t address) {
  return reinterpret_cast<Item*>(address);
}

inline void at_least(const char* name, int64_t value, int64_t least) {
  if (value < least) {
    throw std::invalid_argument(std::string(name) + ": expected at least " + std::to_string(least) +
                                ", got " + std::to_string(value));
  }
}

inline FloatType float_type(int type) {
  if (type < 0 || type > static_cast<int>(FloatType::bfloat16)) {
    throw std::invalid_argument("type: expected 0, 1 or 2, got " + std::to_string(type));
  }
  return static_cast<FloatType>(type);
}

// The maps: sizes in the order of MapShape.
inline MapShape map_shape(const std::array<int64_t, 6>& sizes) {
  const char* names[] = {"images", "queries", "rows", "columns", "height", "width"};
  for (size_t i = 0; i < sizes.size(); ++i) at_least(names[i], sizes[i], i == 0 ? 0 : 1);
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
}

// Adds the CUDA launchers to the module: `_C.cuda`, and `_C_emulated`.
void bind_cuda(py::module_& m);

}  // namespace maskformer
