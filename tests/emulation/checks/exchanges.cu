// Each intrinsic of a warp, and the barriers that count.

#include "cuda/launch.cuh"
#include "emulation/checks/checks.hpp"

using namespace maskformer::cuda;

namespace {

constexpr int kThreads = 64;
constexpr uint32_t kLowHalf = 0x0000ffffu, kHighHalf = 0xffff0000u;

// out[thread] for one block of kThreads.
template <typename Item, typename Expected>
void run(const char* name, void (*kernel)(Item*), const Expected& expected) {
  std::vector<Item> out(kThreads);
  launch(name, kernel, 1, kThreads, 0, nullptr, out.data());
  for (int t = 0; t < kThreads; ++t) expect_equal(name, t, out[t], expected(t));
}

__device__ int thread() { return static_cast<int>(threadIdx.x); }

__global__ void from_lane(int* out) { out[thread()] = __shfl_sync(kAllLanes, thread(), 5); }
__global__ void from_segment(int* out) { out[thread()] = __shfl_sync(kAllLanes, thread(), 11, 8); }
__global__ void from_below(double* out) {
  out[thread()] = __shfl_up_sync(kAllLanes, 0.5 * thread(), 3);
}
__global__ void from_above(float* out) {
  out[thread()] = __shfl_down_sync(kAllLanes, 0.5f * static_cast<float>(thread()), 1, 16);
}
__global__ void across(unsigned long long* out) {
  const unsigned long long value = static_cast<unsigned long long>(thread()) << 40;
  out[thread()] = __shfl_xor_sync(kAllLanes, value, 16);
}

void shuffles() {
  run("shfl", from_lane, [](int t) { return t / 32 * 32 + 5; });
  run("shfl, width 8", from_segment, [](int t) { return t / 8 * 8 + 3; });
  run("shfl_up", from_below, [](int t) { return 0.5 * (t % 32 >= 3 ? t - 3 : t); });
  run("shfl_down, width 16", from_above,
      [](int t) { return 0.5f * static_cast<float>(t % 16 < 15 ? t + 1 : t); });
  run("shfl_xor", across, [](int t) { return static_cast<unsigned long long>(t ^ 16) << 40; });
}

__global__ void ballot(unsigned* out) {
  out[thread()] = __ballot_sync(kAllLanes, thread() % 3 == 0);
}
__global__ void all(int* out) { out[thread()] = __all_sync(kAllLanes, thread() < 63); }
__global__ void any(int* out) { out[thread()] = __any_sync(kAllLanes, thread() == 63); }
__global__ void active(unsigned* out) { out[thread()] = __activemask() >> threadIdx.x % 32 & 1u; }
__global__ void match(unsigned* out) { out[thread()] = __match_any_sync(kAllLanes, thread() % 2); }

void votes() {
  run("ballot", ballot, [](int t) {
    unsigned mask = 0;
    for (int lane = 0; lane < 32; ++lane) mask |= ((t / 32 * 32 + lane) % 3 == 0 ? 1u : 0u) << lane;
    return mask;
  });
  run("all", all, [](int t) { return t < 32 ? 1 : 0; });
  run("any", any, [](int t) { return t < 32 ? 0 : 1; });
  run("activemask", active, [](int) { return 1; });
  run("match_any", match, [](int t) { return t % 2 == 0 ? 0x55555555u : 0xaaaaaaaau; });
}

__global__ void sum(int* out) { out[thread()] = __reduce_add_sync(kAllLanes, thread() - 40); }
__global__ void least(int* out) { out[thread()] = __reduce_min_sync(kAllLanes, 10 - thread()); }
__global__ void most(int* out) { out[thread()] = __reduce_max_sync(kAllLanes, 10 - thread()); }
__global__ void unsigned_least(unsigned* out) {
  out[thread()] = __reduce_min_sync(kAllLanes, 10u - threadIdx.x);
}
__global__ void unsigned_most(unsigned* out) {
  out[thread()] = __reduce_max_sync(kAllLanes, 10u - threadIdx.x);
}
__global__ void bits_and(unsigned* out) {
  out[thread()] = __reduce_and_sync(kAllLanes, threadIdx.x | 0x80u);
}
__global__ void bits_or(unsigned* out) { out[thread()] = __reduce_or_sync(kAllLanes, threadIdx.x); }
__global__ void bits_xor(unsigned* out) {
  out[thread()] = __reduce_xor_sync(kAllLanes, 1u << threadIdx.x % 32);
}

void reductions() {
  run("reduce_add", sum, [](int t) { return t < 32 ? 496 - 32 * 40 : 496 + 32 * 32 - 32 * 40; });
  run("reduce_min", least, [](int t) { return t < 32 ? 10 - 31 : 10 - 63; });
  run("reduce_max", most, [](int t) { return t < 32 ? 10 : 10 - 32; });
  run("reduce_min of unsigned", unsigned_least, [](int t) { return t < 32 ? 0u : 10u - 63u; });
  run("reduce_max of unsigned", unsigned_most, [](int t) { return t < 32 ? ~0u : 10u - 32u; });
  run("reduce_and", bits_and, [](int t) { return t < 32 ? 0x80u : 0xa0u; });
  run("reduce_or", bits_or, [](int t) { return t < 32 ? 31u : 63u; });
  run("reduce_xor", bits_xor, [](int) { return ~0u; });
}

// Halves of a warp that go their own ways, and meet at the end.
__global__ void halves(int* out) {
  const int lane = thread() % 32;
  int value = thread();
  if (lane < 16) {
    for (int step = 8; step > 0; step /= 2) value += __shfl_xor_sync(kLowHalf, value, step);
  } else {
    value = __reduce_max_sync(kHighHalf, value);
    __syncwarp(kHighHalf);
  }
  out[thread()] = __shfl_xor_sync(kAllLanes, value, 16);
}

void partial_masks() {
  run("halves", halves,
      [](int t) { return t % 32 < 16 ? t / 32 * 32 + 31 : 16 * (t / 32 * 32) + 120; });
}

__global__ void count(int* out) { out[thread()] = __syncthreads_count(thread() % 5 == 0); }
__global__ void either(int* out) { out[thread()] = __syncthreads_or(thread() == 40); }
__global__ void both(int* out) {
  const int first = __syncthreads_and(thread() < 64);
  out[thread()] = 2 * first + __syncthreads_and(thread() != 7);
}

void counting_barriers() {
  run("syncthreads_count", count, [](int) { return 13; });
  run("syncthreads_or", either, [](int) { return 1; });
  run("syncthreads_and", both, [](int) { return 2; });
}

}  // namespace

std::vector<Check> exchanges() {
  return {{"shuffles", shuffles},
          {"votes", votes},
          {"reductions", reductions},
          {"partial_masks", partial_masks},
          {"counting_barriers", counting_barriers}};
}
