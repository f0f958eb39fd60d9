// CUDA's names for kernels that run in the emulator: what they mean is in CUDA's programming guide.
// Included by csrc/cuda/device.cuh instead of cuda_runtime.h.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulation/simt.hpp"

#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block runs at a time
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Constant for the thread that reads them; simt.cpp sets them before it switches to it.
extern const uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = simt::kWarp;

#include "emulation/cuda_atomics.hpp"
#include "emulation/cuda_math.hpp"
#include "emulation/cuda_vectors.hpp"
#include "emulation/cuda_warp.hpp"
