// The threads that solve one assignment problem, and what they find out together. All of them get
// the same answer, in the same bits whatever their order.
#pragma once

#include <limits>

#include "core/linear_assignment.hpp"
#include "cuda/device.cuh"

namespace maskformer::cuda {

constexpr uint32_t kMatched = 0x80000000u;  // in a rank: columns that are matched come after free
constexpr uint32_t kNoRank = 0xffffffffu;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A column, and how far it is: of two the one of less value, then of lower rank.
struct Nearest {
  double value = kInfinity;
  uint32_t rank = kNoRank;  // the column, with kMatched if it has a row
};

__device__ __forceinline__ Nearest nearer(Nearest a, Nearest b) {
  const bool second = b.value < a.value || (b.value == a.value && b.rank < a.rank);
  return {second ? b.value : a.value, second ? b.rank : a.rank};
}

// A double as two words that compare, high one first, as the double does. 0 and -0 are one key.
struct Key {
  uint32_t high, low;
};

__device__ __forceinline__ Key key_of(double value) {
  const long long bits = __double_as_longlong(value + 0.0);
  const uint32_t high = static_cast<uint32_t>(bits >> 32);
  const uint32_t negative = static_cast<uint32_t>(bits >> 63);  // all ones, or zero
  return {high ^ (negative | 0x80000000u), static_cast<uint32_t>(bits) ^ negative};
}

__device__ __forceinline__ double value_of(Key key) {
  const uint32_t negative = (key.high & 0x80000000u) != 0 ? 0u : 0xffffffffu;
  const uint32_t high = key.high ^ (negative | 0x80000000u);
  return __hiloint2double(static_cast<int>(high), static_cast<int>(key.low ^ negative));
}

// The nearest of the lanes' columns. Where one lane's high word is alone the least, which is the
// rule, the rest is two shuffles that do not wait for each other.
__device__ __forceinline__ Nearest nearest_of_warp(Nearest own) {
  const Key key = key_of(own.value);
  const uint32_t high = __reduce_min_sync(kAllLanes, key.high);
  const bool leads = key.high == high;
  const uint32_t leading = __ballot_sync(kAllLanes, leads);
  uint32_t low = 0, rank = 0;
  if ((leading & (leading - 1)) == 0) {
    const int lane = __ffs(static_cast<int>(leading)) - 1;
    low = __shfl_sync(kAllLanes, key.low, lane);
    rank = __shfl_sync(kAllLanes, own.rank, lane);
  } else {
    low = __reduce_min_sync(kAllLanes, leads ? key.low : 0xffffffffu);
    rank = __reduce_min_sync(kAllLanes, leads && key.low == low ? own.rank : kNoRank);
  }
  return {value_of({high, low}), rank};
}

__device__ __forceinline__ double least_of_warp(double own) {
  const Key key = key_of(own);
  const uint32_t high = __reduce_min_sync(kAllLanes, key.high);
  const uint32_t low = __reduce_min_sync(kAllLanes, key.high == high ? key.low : 0xffffffffu);
  return value_of({high, low});
}

// One warp, or the warps of a block. Every member calls every function at the same time.
template <bool kOneWarp>
class Team {
 public:
  // slots: [2, warps] in memory that the team shares; not used by one warp.
  __device__ __forceinline__ explicit Team(Nearest* slots) : slots_(slots) {}

  // What members wrote to memory before it, all of them read after it.
  __device__ __forceinline__ void synchronize() const {
    if constexpr (kOneWarp) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  __device__ __forceinline__ Nearest nearest(Nearest own) {
    own = nearest_of_warp(own);
    if constexpr (!kOneWarp) own = nearest_of_warp(exchange(own));
    return own;
  }

  __device__ __forceinline__ double least(double own) {
    own = least_of_warp(own);
    if constexpr (!kOneWarp) own = least_of_warp(exchange({own, 0}).value);
    return own;
  }

  __device__ __forceinline__ uint32_t sum(uint32_t own) {
    own = __reduce_add_sync(kAllLanes, own);
    if constexpr (!kOneWarp) {
      own = __reduce_add_sync(kAllLanes, exchange({0.0, own}, {0.0, 0}).rank);
    }
    return own;
  }

  __device__ __forceinline__ double sum(double own) {
    own = sum_of_warp(own);
    if constexpr (!kOneWarp) own = sum_of_warp(exchange({own, 0}, {0.0, 0}).value);
    return own;
  }

 private:
  static __device__ __forceinline__ double sum_of_warp(double own) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      own += __shfl_xor_sync(kAllLanes, own, lanes);
    }
    return own;
  }

  // Each lane gets what the warp of its number knows, or `none`. The slots alternate: a warp that
  // is ahead writes the other half while this one is still being read.
  __device__ __forceinline__ Nearest exchange(Nearest of_warp, Nearest none = {}) {
    const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const unsigned warps = blockDim.x / kWarp;
    Nearest* slots = slots_ + half_ * warps;
    half_ ^= 1u;
    if (lane == 0) slots[warp] = of_warp;
    __syncthreads();
    return lane < warps ? slots[lane] : none;
  }

  Nearest* slots_;
  unsigned half_ = 0;
};

}  // namespace maskformer::cuda
