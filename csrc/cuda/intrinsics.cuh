// Instructions that CUDA C++ has no name for, each with a plain twin for the emulation.
#pragma once

#include "cuda/device.cuh"

namespace maskformer::cuda {

// 1 / x within 1 ulp, for x that is neither subnormal nor huge: one instruction.
__device__ __forceinline__ float rough_reciprocal(float x) {
#ifdef MASKFORMER_EMULATED
  return 1.0f / x;
#else
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}

}  // namespace maskformer::cuda
