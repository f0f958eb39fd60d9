// Threads that are waited for and do not come.

#include "cuda/launch.cuh"
#include "emulation/checks/checks.hpp"

using namespace maskformer::cuda;

namespace {

template <typename... Parameters, typename... Arguments>
void refuse(const char* name, void (*kernel)(Parameters...), Arguments... arguments) {
  launch(name, kernel, 2, 64, 0, nullptr, arguments...);
}

__global__ void skip(int* out) {
  if (blockIdx.x == 1 && threadIdx.x == 40) return;
  __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = 1;
}

void barrier_left() {
  std::vector<int> out(128);
  refuse("barrier_left", skip, out.data());
}

__global__ void part_skips(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = 1;
}

void barrier_skipped() {
  std::vector<int> out(128);
  refuse("barrier_skipped", part_skips, out.data());
}

__global__ void two_barriers() {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void barriers_differ() { refuse("barriers_differ", two_barriers); }

__global__ void barrier_and_shuffle(int* out) {
  if (threadIdx.x < 16) {
    out[0] = __shfl_sync(kAllLanes, 1, 0);
  } else {
    __syncthreads();
  }
}

void barrier_against_exchange() {
  int out = 0;
  refuse("barrier_against_exchange", barrier_and_shuffle, &out);
}

__global__ void half_shuffles(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0);
}

void exchange_left() {
  std::vector<int> out(64);
  refuse("exchange_left", half_shuffles, out.data());
}

__global__ void different_intrinsics() {
  if (threadIdx.x % 2 == 0) {
    __syncwarp();
  } else {
    __ballot_sync(kAllLanes, 1);
  }
}

void exchanges_differ() { refuse("exchanges_differ", different_intrinsics); }

__global__ void different_masks() { __syncwarp(threadIdx.x % 2 == 0 ? kAllLanes : kAllLanes << 1); }

void masks_differ() { refuse("masks_differ", different_masks); }

__global__ void not_in_its_mask() { __syncwarp(0xffffu); }

void lane_not_in_mask() { refuse("lane_not_in_mask", not_in_its_mask); }

__global__ void all_lanes() { __syncwarp(); }

void lane_absent() { launch("lane_absent", all_lanes, 1, 40, 0, nullptr); }

__global__ void read_outside(int* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(0xffu, 1, 8);
}

void lane_outside_mask() {
  std::vector<int> out(8);
  refuse("lane_outside_mask", read_outside, out.data());
}

void block_too_large() { launch("block_too_large", all_lanes, 1, dim3(1024, 2), 0, nullptr); }

void shared_too_large() { launch("shared_too_large", all_lanes, 1, 32, 100 * 1024, nullptr); }

}  // namespace

std::vector<Check> waits() {
  return {
      {"barrier_left", barrier_left},       {"barrier_skipped", barrier_skipped},
      {"barriers_differ", barriers_differ}, {"barrier_against_exchange", barrier_against_exchange},
      {"exchange_left", exchange_left},     {"exchanges_differ", exchanges_differ},
      {"masks_differ", masks_differ},       {"lane_not_in_mask", lane_not_in_mask},
      {"lane_absent", lane_absent},         {"lane_outside_mask", lane_outside_mask},
      {"block_too_large", block_too_large}, {"shared_too_large", shared_too_large}};
}
