// How a kernel is started, on a GPU and in the emulation.
#pragma once

#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda/device.cuh"
#include "cuda/stream.hpp"

namespace maskformer::cuda {

constexpr int64_t kMostBlocks = 0x7fffffff;  // along x; 65535 along y and z

// A grid's extent along x; std::runtime_error if CUDA has no such grid.
inline unsigned blocks(int64_t count) {
  if (count < 0 || count > kMostBlocks) {
    throw std::runtime_error("expected at most 2^31 - 1 blocks, got " + std::to_string(count));
  }
  return static_cast<unsigned>(count);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline std::string text(dim3 size) {
  return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " +
         std::to_string(size.z) + ")";
}

#ifndef MASKFORMER_EMULATED
// Throws std::runtime_error with CUDA's reason and the architectures in the module.
inline void check_launch(cudaError_t error, const char* op, dim3 grid, dim3 block,
                         int64_t shared_bytes) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the next launch is not to blame
  throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error) + "; grid " +
                           text(grid) + ", block " + text(block) + ", " +
                           std::to_string(shared_bytes) +
                           " bytes of dynamic shared memory; built for " + architectures());
}
#endif

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...); an empty grid does nothing. Never
// synchronises. Throws std::runtime_error naming `op` ("panoptic_map" or "panoptic_map: ids").
template <typename... Parameters, typename... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            int64_t shared_bytes, Stream stream, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#ifdef MASKFORMER_EMULATED
  static_cast<void>(stream);
  const auto body = [&] { kernel(static_cast<Parameters>(arguments)...); };
  simt::run({op, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes}, body);
#else
  static std::mutex limit_mutex;  // another thread may not lower the limit before the launch
  std::unique_lock<std::mutex> limit_lock(limit_mutex, std::defer_lock);
  if (shared_bytes > kSharedByDefault - kStaticShared) {
    limit_lock.lock();
    check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared_bytes)),
                 op, grid, block, shared_bytes);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  check_launch(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), op, grid,
               block, shared_bytes);
#endif
}

}  // namespace maskformer::cuda
