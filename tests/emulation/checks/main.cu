// checks_of_emulator CASE: runs a kernel that the emulator must accept, or refuse with a message.

#include <cstdio>
#include <vector>

#include "core/arena.hpp"
#include "core/bilinear.hpp"
#include "core/float_types.hpp"
#include "core/focal.hpp"
#include "core/linear_assignment.hpp"
#include "core/panoptic.hpp"
#include "core/sampling.hpp"
#include "cuda/launch.cuh"

using namespace maskformer::cuda;

__global__ void sum(const int* in, int count, int* out) {
  __shared__ int partial[32];
  int* all = dynamic_shared<int>();
  int total = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    total += in[i];
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(kAllLanes, total, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    all[0] = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) all[0] += partial[w];
    *out = all[0];
  }
}

int main() {
  std::vector<int> in(1000, 1);
  int out = 0;
  try {
    launch("sum", sum, 100, 256, 64, nullptr, in.data(), 1000, &out);
  } catch (const std::exception& e) {
    printf("%s\n", e.what());
  }
  printf("%d\n", out);
}
