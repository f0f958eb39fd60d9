// Races between threads, warps and blocks; accesses out of bounds.

#include "cuda/launch.cuh"
#include "emulation/checks/checks.hpp"

using namespace maskformer::cuda;

namespace {

constexpr int kThreads = 64;

// One launch of two blocks on out [256].
void refuse(const char* name, void (*kernel)(int*), int64_t shared_bytes = 0) {
  std::vector<int> out(256);
  launch(name, kernel, 2, kThreads, shared_bytes, nullptr, out.data());
}

__device__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ int own() { return static_cast<int>(blockIdx.x) * kThreads + thread(); }

__global__ void read_before_barrier(int* out) {
  __shared__ int value[kThreads];
  value[thread()] = thread();
  __syncthreads();
  value[thread()] = 2 * thread();  // between these two barriers
  out[own()] = value[(thread() + 32) % kThreads];
  __syncthreads();
}

void shared_race() { refuse("shared_race", read_before_barrier); }

__global__ void write_one(int* out) {
  __shared__ int value;
  value = thread();
  __syncthreads();
  out[own()] = value;
}

void write_race() { refuse("write_race", write_one); }

__global__ void write_after_read(int* out) {
  __shared__ int value[kThreads];
  value[thread()] = 1;
  __syncthreads();
  out[own()] = value[(thread() + 1) % kThreads];
  value[thread()] = 2;
}

void read_race() { refuse("read_race", write_after_read); }

__global__ void shuffle_for_barrier(int* out) {
  __shared__ int value[kThreads];
  value[thread()] = 1;
  __shfl_sync(kAllLanes, 1, 0);  // orders nothing
  out[own()] = value[thread() ^ 1];
}

void warp_race() { refuse("warp_race", shuffle_for_barrier); }

__global__ void warp_barrier_for_block(int* out) {
  __shared__ int value[kThreads];
  value[thread()] = 1;
  __syncwarp();
  out[own()] = value[(thread() + 32) % kThreads];
}

void warps_race() { refuse("warps_race", warp_barrier_for_block); }

__global__ void half_for_warp(int* out) {
  __shared__ int value[kThreads];
  value[thread()] = 1;
  __syncwarp(thread() % 32 < 16 ? 0xffffu : 0xffff0000u);
  out[own()] = value[thread() ^ 16];
}

void partial_race() { refuse("partial_race", half_for_warp); }

__global__ void plain_and_atomic(int* out) {
  __shared__ int count;
  if (thread() == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1);
  out[own()] = count;
}

void atomic_race() { refuse("atomic_race", plain_and_atomic); }

__global__ void same_place(int* out) {
  if (thread() == 0) out[0] = static_cast<int>(blockIdx.x);
}

void blocks_race() { refuse("blocks_race", same_place); }

__global__ void last_without_fence(int* out) {
  if (thread() != 0) return;
  out[2 + blockIdx.x] = 1;
  if (atomicAdd(out, 1) == 1) out[1] = out[2] + out[3];
}

void fence_race() { refuse("fence_race", last_without_fence); }

__global__ void neighbour_bytes(int* out) {
  uint8_t* bytes = reinterpret_cast<uint8_t*>(out);
  bytes[own()] = 1;
  if (own() == 7) out[1] = 0;
}

void bytes_race() { refuse("bytes_race", neighbour_bytes); }

__global__ void read_unwritten(int* out) {
  __shared__ int value[kThreads];
  if (thread() != 9) value[thread()] = 1;
  __syncthreads();
  out[own()] = value[thread()];
}

void unwritten() { refuse("unwritten", read_unwritten); }

__global__ void beyond_dynamic(int* out) {
  int* value = dynamic_shared<int>();
  value[thread()] = 1;
  out[own()] = 1;
}

void dynamic_bounds() { refuse("dynamic_bounds", beyond_dynamic, (kThreads - 1) * 4); }

__global__ void before_dynamic(int* out) {
  int* value = dynamic_shared<int>();
  if (thread() == 0) value[-1 - static_cast<int>(blockIdx.x)] = 1;
  out[own()] = 1;
}

void negative_index() { refuse("negative_index", before_dynamic, 64); }

__global__ void beyond_static(int* out) {
  __shared__ int value[kThreads - 1];
  value[thread()] = 1;
  __syncthreads();
  out[own()] = value[0];
}

void static_bounds() { refuse("static_bounds", beyond_static); }

__global__ void beyond_tensor(int* out) { out[own() * 4] = 1; }

void global_bounds() { refuse("global_bounds", beyond_tensor); }

__global__ void foreign_stack(int* out) {
  __shared__ int* address;
  int local = thread();
  if (thread() == 0) address = &local;
  __syncthreads();
  out[own()] = *address;
  __syncthreads();
  out[own()] += local;
}

void local_memory() { refuse("local_memory", foreign_stack); }

}  // namespace

std::vector<Check> accesses() {
  return {{"shared_race", shared_race},       {"write_race", write_race},
          {"read_race", read_race},           {"warp_race", warp_race},
          {"warps_race", warps_race},         {"partial_race", partial_race},
          {"atomic_race", atomic_race},       {"blocks_race", blocks_race},
          {"fence_race", fence_race},         {"bytes_race", bytes_race},
          {"unwritten", unwritten},           {"dynamic_bounds", dynamic_bounds},
          {"negative_index", negative_index}, {"static_bounds", static_bounds},
          {"global_bounds", global_bounds},   {"local_memory", local_memory}};
}
