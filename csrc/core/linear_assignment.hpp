// linear_assignment: the rules that do not depend on how the problem is solved.
#pragma once

#include <cstdint>

#include "core/host_device.hpp"

namespace maskformer {

enum AssignmentStatus : int8_t { kOptimal = 0, kReplaced = 1, kLimitReached = 2 };

constexpr double kRelativeGap = 1e-9;  // of max(1, sum |c|): what still counts as optimal

constexpr double kHuge = 0x1p900;     // entries beyond it could overflow a sum,
constexpr double kShrink = 0x1p-200;  // so the whole problem is scaled by this power of two

MASKFORMER_HD double smaller(double a, double b) { return a < b ? a : b; }

MASKFORMER_HD double larger(double a, double b) { return a < b ? b : a; }

// False for NaN and the infinities.
template <typename Real>
MASKFORMER_HD bool is_finite(Real value) {
  return value - value == Real{0};
}

// The factor by which a problem with finite entries in [least, most] is scaled.
MASKFORMER_HD double cost_scale(double least, double most) {
  return larger(most, -least) > kHuge ? kShrink : 1.0;
}

// The cost that stands for a non-finite entry: one more of them always costs more than any choice
// of the finite ones, in [least, most], can save. least > most says that none is finite.
MASKFORMER_HD double replacement_cost(double least, double most, int64_t targets) {
  if (least > most) return 1.0;
  const double spread = most - least;
  return most + static_cast<double>(targets) * spread + larger(1.0, spread);
}

// The status of a matching with this gap, whose costs sum to `magnitude` in absolute value; both
// and the costs multiplied by `scale`.
MASKFORMER_HD AssignmentStatus assignment_status(bool replaced, double gap, double magnitude,
                                                 double scale) {
  if (!(gap <= kRelativeGap * larger(scale, magnitude))) return kLimitReached;
  return replaced ? kReplaced : kOptimal;
}

}  // namespace maskformer
