// Which classes can win in a tile, and in its cells: for semantic_map.cu.
#pragma once

#include "cuda/semantic_tile.cuh"

namespace maskformer::cuda {
namespace {

struct Bounds {
  float least, most;
};

__device__ inline Bounds corner_bounds(const float* corner, int row) {
  const Corners c{corner[0], corner[1], corner[row], corner[row + 1]};
  return {least(c), most(c)};
}

// What the lanes of a warp hold, each of another contender, before they go through these.
struct Head {
  int32_t count = 0;
  float others = 0.0f;
};

// Bounds of class k from `count` of its probabilities.
struct EntryBounds {
  const Entry* entries;  // [K, Q]
  const int32_t* count;  // [K]
  const float* others;   // [K]
  const float* prob;
  int32_t queries, corners, row;

  __device__ Head head(int32_t k) const { return {count[k], others[k]}; }

  __device__ Bounds operator()(int32_t k, const Head& head, int32_t corner) const {
    Bounds sum{0.0f, head.others};
    const Entry* of_class = entries + int64_t{1} * k * queries;
    for (int32_t e = 0; e < head.count; ++e) {
      const Entry entry = of_class[e];
      Bounds b = corner_bounds(prob + entry.query * corners + corner, row);
      if (b.most > 1.0f) b = {0.0f, 1.0f};
      sum.least += entry.prob * b.least;
      sum.most += entry.prob * b.most;
    }
    return sum;
  }
};

// Bounds of the class in place j of the group from its scores at the corners.
struct CornerBounds {
  const float* score;
  int32_t corners, row;

  __device__ Head head(int32_t) const { return {}; }

  __device__ Bounds operator()(int32_t j, const Head&, int32_t corner) const {
    return corner_bounds(score + j * corners + corner, row);
  }
};

__device__ inline bool has_bit(const uint32_t* bits, int32_t i) {
  return (bits[i / 32] >> i % 32 & 1u) != 0;
}

// Calls visit(contender, bounds) for the contenders of this warp, every kWarps-th one, that are
// in `among` (bits, or null for all), in the cell with this corner. All lanes together.
template <typename BoundsOf, typename Visit>
__device__ void for_bounds(const BoundsOf& bounds_of, int32_t contenders, const uint32_t* among,
                           int32_t corner, const Visit& visit) {
  const int32_t lane = threadIdx.x % kWarp;
  for (int32_t base = threadIdx.x / kWarp; base < contenders; base += kWarps * kWarp) {
    const int32_t mine = base + kWarps * lane;
    const Head own = mine < contenders ? bounds_of.head(mine) : Head{};
    for (int32_t i = 0; i < kWarp && base + kWarps * i < contenders; ++i) {
      const int32_t n = base + kWarps * i;
      if (among != nullptr && !has_bit(among, n)) continue;
      const Head head{__shfl_sync(kAllLanes, own.count, i), __shfl_sync(kAllLanes, own.others, i)};
      visit(n, bounds_of(n, head, corner));
    }
  }
}

// Raises every cell's threshold to the greatest lower bound of the contenders.
template <typename BoundsOf>
__device__ void raise_thresholds(const Plan& plan, const Shared& s, const BoundsOf& bounds_of,
                                 int32_t contenders) {
  for (int32_t start = 0; start < plan.cells(); start += kWarp) {
    const int32_t cell = start + threadIdx.x % kWarp;
    const int32_t corner = plan.corner_of(min(cell, plan.cells() - 1));
    float greatest = 0.0f;
    for_bounds(bounds_of, contenders, nullptr, corner,
               [&](int32_t, const Bounds& b) { greatest = fmaxf(greatest, b.least); });
    if (cell < plan.cells()) atomicMax(s.threshold + cell, __float_as_int(greatest));
  }
}

// Adds to `live` the contenders that may win in some cell; count and last of the cells.
template <typename BoundsOf>
__device__ void find_candidates(const Plan& plan, const Shared& s, const BoundsOf& bounds_of,
                                int32_t contenders, const uint32_t* among, uint32_t* live) {
  for (int32_t start = 0; start < plan.cells(); start += kWarp) {
    const int32_t lane = threadIdx.x % kWarp, cell = min(start + lane, plan.cells() - 1);
    const bool exists = start + lane < plan.cells();
    const float threshold = __int_as_float(s.threshold[cell]) * (1.0f - kMargin);
    int32_t count = 0, last = -1;
    const auto visit = [&](int32_t n, const Bounds& b) {
      const bool candidate = exists && b.most >= threshold;
      count += candidate ? 1 : 0;
      last = candidate ? n : last;
      if (__any_sync(kAllLanes, candidate) && lane == 0) atomicOr(live + n / 32, 1u << n % 32);
    };
    for_bounds(bounds_of, contenders, among, plan.corner_of(cell), visit);
    if (exists && count > 0) {
      atomicAdd(s.count + cell, count);
      atomicMax(s.last + cell, last);
    }
  }
}

// Before find_candidates(); a barrier must lie between.
__device__ inline void forget_candidates(const Plan& plan, const Shared& s, int32_t contenders,
                                         uint32_t* live) {
  for (int32_t i = threadIdx.x; i < plan.cells(); i += kThreads) {
    s.count[i] = 0;
    s.last[i] = -1;
  }
  for (int32_t i = threadIdx.x; i < words_of(contenders); i += kThreads) live[i] = 0;
}

// The greatest probability of every query in the tile: `most`. A warp per query.
__device__ inline void find_most(const Plan& plan, const Shared& s) {
  for (int32_t q = threadIdx.x / kWarp; q < plan.resident; q += kWarps) {
    float most = 0.0f;
    for (int32_t i = threadIdx.x % kWarp; i < plan.corners; i += kWarp) {
      most = fmaxf(most, s.prob[q * plan.corners + i]);
    }
    const int32_t all = __reduce_max_sync(kAllLanes, __float_as_int(fminf(most, 1.0f)));
    if (threadIdx.x % kWarp == 0) s.most[q] = __int_as_float(all);
  }
}

// Sets the bits of the classes whose upper bound in the whole tile, sum_q p_qk most_q, reaches the
// threshold of some cell. A thread per class, so that the probabilities are read in rows.
__device__ inline void drop_classes(const Arguments& a, const Tile& t, const Shared& s,
                                    uint32_t* live) {
  int32_t least = 0x7f800000;  // infinity
  for (int32_t i = threadIdx.x % kWarp; i < a.plan.cells(); i += kWarp) {
    least = min(least, s.threshold[i]);
  }
  least = __reduce_min_sync(kAllLanes, least);
  const float threshold = __int_as_float(least) * (1.0f - kMargin);
  const int64_t classes = a.probs.classes;
  const float* probs = a.probs.all + t.image * a.shape.queries * (classes + 1);
  for (int64_t base = threadIdx.x - threadIdx.x % kWarp; base < classes; base += kThreads) {
    const int64_t k = base + threadIdx.x % kWarp;
    const float* prob = probs + (k < classes ? k : classes);
    float sum = 0.0f;
#pragma unroll 4
    for (int32_t q = 0; q < a.plan.resident; ++q, prob += classes + 1) sum += *prob * s.most[q];
    const uint32_t word = __ballot_sync(kAllLanes, k < classes && sum >= threshold);
    if (threadIdx.x % kWarp == 0) live[base / 32] = word;
  }
}

// The next bits that are set in `live`, from `next` on, at most `most`: ascending to `list`. One
// warp. Returns how many.
__device__ inline int32_t list_bits(const uint32_t* live, int32_t bits, int32_t next, int32_t most,
                                    int32_t* list) {
  const int32_t lane = threadIdx.x % kWarp;
  int32_t listed = 0;
  for (int32_t start = next / 32; start < words_of(bits) && listed < most; start += kWarp) {
    const int32_t word = start + lane;
    uint32_t set = word < words_of(bits) ? live[word] : 0;
    if (word == next / 32) set &= kAllLanes << next % 32;
    int32_t before = __popc(set);
    for (int32_t delta = 1; delta < kWarp; delta *= 2) {
      const int32_t other = __shfl_up_sync(kAllLanes, before, static_cast<unsigned>(delta));
      before += lane >= delta ? other : 0;
    }
    const int32_t end = listed + __shfl_sync(kAllLanes, before, kWarp - 1);
    for (int32_t at = listed + before - __popc(set); set != 0 && at < most; set &= set - 1) {
      list[at++] = 32 * word + __ffs(static_cast<int>(set)) - 1;
    }
    listed = min(end, most);
  }
  return listed;
}

}  // namespace
}  // namespace maskformer::cuda
