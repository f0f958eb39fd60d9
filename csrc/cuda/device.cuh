// What every kernel includes: CUDA, or its emulation on the host (MASKFORMER_EMULATED, defined by
// tests/emulation). Kernels are plain CUDA C++; what is not in the emulation is added to
// tests/emulation/cuda.hpp, and inline PTX to csrc/cuda/intrinsics.cuh with a plain twin.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef MASKFORMER_EMULATED
#include "emulation/cuda.hpp"
#else
#include <cuda_runtime.h>
#endif

namespace maskformer::cuda {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int64_t kSharedByDefault = 48 * 1024;  // bytes of a block that need no opt-in
constexpr int64_t kStaticShared = 2048;          // of them static, at most, in any kernel

// The block's dynamic shared memory, aligned to 128 bytes: `shared_bytes` of launch().
template <typename Item>
__device__ __forceinline__ Item* dynamic_shared() {
#ifdef MASKFORMER_EMULATED
  return static_cast<Item*>(simt::dynamic_shared());
#else
  extern __shared__ __align__(128) unsigned char maskformer_dynamic_shared[];
  return reinterpret_cast<Item*>(maskformer_dynamic_shared);
#endif
}

}  // namespace maskformer::cuda
