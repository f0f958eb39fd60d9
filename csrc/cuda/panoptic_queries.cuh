// The kernels of panoptic_map that look at queries and not at pixels: one block for each image.
#pragma once

#include "core/map_shape.hpp"
#include "cuda/device.cuh"
#include "cuda/panoptic_map.hpp"

namespace maskformer::cuda {
namespace {

constexpr int kQueryThreads = 1024;
constexpr int32_t kNobody = 0x7fffffff;

// Pixels of the queries, counted by all blocks: won, written and original, [B, Q] each.
struct Counters {
  unsigned long long* won;
  unsigned long long* written;
  unsigned long long* original;
};

// A query that competes, and what its mask is in terms of logits: a cell lies outside it if all of
// its corners are below the one limit, and inside if none is below the other.
struct alignas(16) Contender {
  float score, outside, inside;
  int32_t query;
};

// Workspace: what one kernel leaves to the next.
struct PanopticState {
  int32_t* kept_count;      // [B]
  Contender* kept;          // [B, Q] the queries that compete, in ascending order
  Counters pixels;          // [B, Q]
  int32_t* first_of_class;  // [B, K] the lowest query that survived, of a stuff class
};

// Bits of the queries of an image, in dynamic shared memory.
inline int64_t query_bits(int64_t queries) { return (queries + kWarp - 1) / kWarp; }

__device__ inline void clear_bits(uint32_t* bits, int64_t words) {
  for (int64_t w = threadIdx.x; w < words; w += kQueryThreads) bits[w] = 0;
}

__device__ inline void set_bit(uint32_t* bits, int64_t q) {
  atomicOr(&bits[q / kWarp], 1u << (q % kWarp));
}

// How many bits are set below bit q.
__device__ inline int32_t rank_of(const uint32_t* bits, int64_t q) {
  int32_t rank = __popc(bits[q / kWarp] & ((1u << (q % kWarp)) - 1u));
  for (int64_t w = 0; w < q / kWarp; ++w) rank += __popc(bits[w]);
  return rank;
}

struct Classified {
  float score;
  int32_t label;
};

// The class of the greatest logit, the lowest of equals, and its softmax; by a warp. Where the
// softmax is NaN it counts as 0, and the label is 0.
template <typename Item>
__device__ Classified classify_query(const Item* logits, int32_t count, int32_t lane) {
  float greatest = -INFINITY;
  int32_t label = count;
  bool broken = false;
  for (int32_t k = lane; k < count; k += kWarp) {
    const float x = to_float(logits[k]);
    broken |= !(x < INFINITY);
    if (x > greatest) {
      greatest = x;
      label = k;
    }
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, greatest, step);
    const int32_t its_label = __shfl_xor_sync(kAllLanes, label, step);
    if (other > greatest || (other == greatest && its_label < label)) {
      greatest = other;
      label = its_label;
    }
  }
  if (__any_sync(kAllLanes, broken) || greatest == -INFINITY) return {0.0f, 0};
  float sum = 0.0f;
  for (int32_t k = lane; k < count; k += kWarp) sum += expf(to_float(logits[k]) - greatest);
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return {1.0f / sum, label};
}

__device__ inline float logit(double p) {
  if (p <= 0.0) return -INFINITY;
  return p >= 1.0 ? INFINITY : static_cast<float>(log(p / (1.0 - p)));
}

__device__ inline Contender contender(int32_t query, float score, const PanopticRules& rules) {
  const double weight = rules.dialect == Dialect::transformers ? score : 1.0;
  const double limit = rules.mask_threshold / weight;
  return {score, logit(limit * (1.0 - kMargin)), logit(limit * (1.0 + kMargin)), query};
}

// Scores and labels, the list of the queries that compete, and counters at 0.
template <typename Item>
__global__ void __launch_bounds__(kQueryThreads, 1)
    list_kept(const Item* logits, int64_t classes, int64_t queries, PanopticRules rules,
              PanopticOutput output, PanopticState state) {
  const int64_t image = blockIdx.x, first = image * queries, words = (queries + kWarp - 1) / kWarp;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % kWarp);
  uint32_t* kept = dynamic_shared<uint32_t>();
  clear_bits(kept, words);
  __syncthreads();
  for (int64_t q = threadIdx.x / kWarp; q < queries; q += kQueryThreads / kWarp) {
    const Classified best = classify_query(logits + (first + q) * (classes + 1),
                                           static_cast<int32_t>(classes + 1), lane);
    if (lane != 0) continue;
    output.score[first + q] = best.score;
    output.label[first + q] = best.label;
    if (is_kept(best.score, best.label, classes, rules)) set_bit(kept, q);
  }
  for (int64_t k = threadIdx.x; k < classes; k += kQueryThreads) {
    state.first_of_class[image * classes + k] = kNobody;
  }
  __syncthreads();
  for (int64_t q = threadIdx.x; q < queries; q += kQueryThreads) {
    const Counters& pixels = state.pixels;
    pixels.won[first + q] = pixels.written[first + q] = pixels.original[first + q] = 0;
    const int32_t rank = rank_of(kept, q);
    const bool is_set = (kept[q / kWarp] >> (q % kWarp) & 1u) != 0;
    if (is_set) {
      state.kept[first + rank] = contender(static_cast<int32_t>(q), output.score[first + q], rules);
    }
    if (q == queries - 1) state.kept_count[image] = rank + (is_set ? 1 : 0);
  }
}

// The segments, from what the queries won: number_segments() of core/panoptic.hpp for all queries
// at once. A query leads a segment if it is a thing or the first of its class; the id is 1 plus the
// number of leaders before.
__global__ void __launch_bounds__(kQueryThreads, 1)
    conclude(__grid_constant__ const ThingClasses things, int64_t classes, int64_t queries,
             PanopticRules rules, PanopticOutput output, PanopticState state) {
  const int64_t image = blockIdx.x, first = image * queries, words = (queries + kWarp - 1) / kWarp;
  const int32_t kept = state.kept_count[image];
  int32_t* first_of_class = state.first_of_class + image * classes;
  uint32_t* leads = dynamic_shared<uint32_t>();
  clear_bits(leads, words);
  for (int64_t q = threadIdx.x; q < queries; q += kQueryThreads) {
    output.segment_of_query[first + q] = 0;
    output.area[first + q] = 0;
  }
  __syncthreads();
  const auto stands = [&](int64_t q) {
    const Counters& pixels = state.pixels;
    return survives({static_cast<int64_t>(pixels.won[first + q]),
                     static_cast<int64_t>(pixels.written[first + q]),
                     static_cast<int64_t>(pixels.original[first + q])},
                    rules);
  };
  for (int32_t n = static_cast<int32_t>(threadIdx.x); n < kept; n += kQueryThreads) {
    const int32_t q = state.kept[first + n].query;
    const int64_t label = output.label[first + q];
    if (!stands(q)) continue;
    output.area[first + q] = static_cast<int32_t>(state.pixels.written[first + q]);
    if (!things.contains(label)) atomicMin(&first_of_class[label], q);
  }
  __syncthreads();
  const auto leader = [&](int32_t q) {
    const int64_t label = output.label[first + q];
    return things.contains(label) ? q : first_of_class[label];
  };
  for (int32_t n = static_cast<int32_t>(threadIdx.x); n < kept; n += kQueryThreads) {
    const int32_t q = state.kept[first + n].query;
    if (stands(q) && leader(q) == q) set_bit(leads, q);
  }
  __syncthreads();
  for (int32_t n = static_cast<int32_t>(threadIdx.x); n < kept; n += kQueryThreads) {
    const int32_t q = state.kept[first + n].query;
    if (stands(q)) output.segment_of_query[first + q] = 1 + rank_of(leads, leader(q));
  }
}

}  // namespace
}  // namespace maskformer::cuda
