// The current device, and what the kernels were built for.

#include <stdexcept>
#include <string>

#include "cuda/device.cuh"
#include "cuda/stream.hpp"

namespace maskformer::cuda {

const char* architectures() { return MASKFORMER_CUDA_ARCHITECTURES; }

#ifdef MASKFORMER_EMULATED

DeviceGuard::DeviceGuard(int) {}
DeviceGuard::~DeviceGuard() = default;

int64_t most_shared_bytes() { return simt::kMostShared - kStaticShared; }

int multiprocessors() { return 2; }

#else

namespace {

void check(cudaError_t error, int device) {
  if (error == cudaSuccess) return;
  throw std::runtime_error("CUDA device " + std::to_string(device) + ": " +
                           cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr name) {
  int device = -1, value = 0;
  check(cudaGetDevice(&device), device);
  check(cudaDeviceGetAttribute(&value, name, device), device);
  return value;
}

}  // namespace

DeviceGuard::DeviceGuard(int device) {
  int current = -1;
  check(cudaGetDevice(&current), device);
  if (current == device) return;
  check(cudaSetDevice(device), device);
  previous_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

int64_t most_shared_bytes() {
  return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kStaticShared;
}

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

#endif

}  // namespace maskformer::cuda
