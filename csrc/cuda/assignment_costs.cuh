// The costs of one assignment problem, seen with the smaller side as rows, fit to be computed with:
// what is not finite replaced, what is huge scaled.
#pragma once

#include <limits>

#include "core/linear_assignment.hpp"
#include "cuda/device.cuh"

namespace maskformer::cuda {

// kShared: the matrix is copied to shared memory, else it is read where it is, through the caches.
template <typename Cost, bool kShared>
class Costs {
 public:
  // All members of the team call it; they synchronise after it. cost: [targets, queries].
  template <typename Team>
  __device__ __forceinline__ Costs(const Cost* cost, int targets, int queries, Cost* shared,
                                   Team& team)
      : transposed(targets > queries),
        rows(transposed ? queries : targets),
        columns(transposed ? targets : queries),
        cost_(cost),
        row_step_(transposed ? 1 : queries),
        column_step_(transposed ? queries : 1),
        shared_(shared) {
    Range range = load(int64_t{targets} * queries);
    const double least = team.least(static_cast<double>(range.least));
    const double most = -team.least(-static_cast<double>(range.most));
    replaced = team.sum(range.replaced) != 0;
    scale = cost_scale(least, most);
    plain = !replaced && scale == 1.0;
    big_ = replacement_cost(least * scale, most * scale, targets);
  }

  // As it came, for repaired().
  __device__ __forceinline__ double read(int row, int column) const {
    if constexpr (kShared) return static_cast<double>(shared_[row * columns + column]);
    const int64_t at = int64_t{row} * row_step_ + int64_t{column} * column_step_;
    return static_cast<double>(__ldg(cost_ + at));
  }

  __device__ __forceinline__ double repaired(double cost) const {
    return is_finite(cost) ? cost * scale : big_;
  }

  __device__ __forceinline__ double at(int row, int column) const {
    const double cost = read(row, column);
    return plain ? cost : repaired(cost);
  }

  const bool transposed;  // rows are queries
  const int rows;         // <= columns
  const int columns;
  bool replaced;  // some entry was not finite
  bool plain;     // repaired() changes nothing
  double scale;   // of the costs that at() returns

 private:
  static constexpr int kInFlight = 64 / sizeof(Cost);  // loads of a thread before the first use
  static constexpr Cost kInfinity = std::numeric_limits<Cost>::infinity();

  struct Range {  // of the finite entries
    Cost least = kInfinity, most = -kInfinity;
    uint32_t replaced = 0;
  };

  __device__ __forceinline__ Range load(int64_t entries) {
    Range range;
    const int64_t threads = blockDim.x;
    for (int64_t first = threadIdx.x; first < entries; first += kInFlight * threads) {
      Cost values[kInFlight];
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        const int64_t i = first + k * threads;
        if (i < entries) values[k] = __ldg(cost_ + i);
      }
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        const int64_t i = first + k * threads;
        if (i < entries) take(range, i, values[k]);
      }
    }
    return range;
  }

  __device__ __forceinline__ void take(Range& range, int64_t i, Cost value) {
    const bool finite = is_finite(value);
    range.least = min(range.least, finite ? value : kInfinity);
    range.most = max(range.most, finite ? value : -kInfinity);
    range.replaced |= finite ? 0u : 1u;
    if constexpr (kShared) {
      const int at = static_cast<int>(i);
      shared_[transposed ? at % rows * columns + at / rows : at] = value;
    }
  }

  double big_;
  const Cost* cost_;
  int row_step_, column_step_;
  Cost* shared_;
};

}  // namespace maskformer::cuda
