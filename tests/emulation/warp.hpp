// What one exchange of a warp computes.
#pragma once

#include "emulation/simt.hpp"

namespace simt {

struct Lanes {
  uint32_t mask;  // who takes part
  uint64_t value[kWarp];
  uint32_t argument[kWarp];
  uint64_t result[kWarp];
};

const char* name_of(Exchange what);

// Fills `result` of the lanes in the mask. The lane that a shuffle may not read, or -1.
int compute(Exchange what, Lanes& lanes);

}  // namespace simt
