// What callers of the CUDA launchers need and a plain C++ compiler understands: no CUDA header.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace maskformer::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// Makes `device` the current one while it lives. Throws std::runtime_error where there is none.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;  // -1: nothing to restore
};

// Bytes of dynamic shared memory that a block of any kernel may have on the current device.
int64_t most_shared_bytes();

// Streaming multiprocessors of the current device.
int multiprocessors();

// What the kernels were compiled for: "sm_80 sm_90 compute_90", the last as PTX.
const char* architectures();

}  // namespace maskformer::cuda
