// Indices, shared and global memory, atomics, and what orders accesses to them; maths.

#include <numeric>
#include <thread>

#include "cuda/launch.cuh"
#include "emulation/checks/checks.hpp"

using namespace maskformer::cuda;

namespace {

__global__ void number(int64_t* out) {
  const int64_t block = blockIdx.x + gridDim.x * (blockIdx.y + int64_t{gridDim.y} * blockIdx.z);
  const int64_t thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int64_t i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  out[i] = i;
}

void indices() {
  constexpr int64_t kCount = 2 * 3 * 5 * 7 * 2 * 3;
  std::vector<int64_t> out(kCount, -1);
  launch("number", number, dim3(2, 3, 5), dim3(7, 2, 3), 0, nullptr, out.data());
  for (int64_t i = 0; i < kCount; ++i) expect_equal("number", i, out[i], i);
  launch("number", number, dim3(2, 0), 32, 0, nullptr, nullptr);
}

constexpr int kTile = 32, kRows = 8;

__global__ void transpose(const float* in, float* out, int size) {
  __shared__ float tile[kTile][kTile + 1];
  float* copy = dynamic_shared<float>();
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int left = static_cast<int>(blockIdx.x) * kTile, top = static_cast<int>(blockIdx.y) * kTile;
  for (int r = y; r < kTile; r += kRows) tile[r][x] = in[(top + r) * size + left + x];
  __syncthreads();
  for (int r = y; r < kTile; r += kRows) copy[r * kTile + x] = tile[x][r];
  __syncthreads();
  for (int r = y; r < kTile; r += kRows) out[(left + r) * size + top + x] = copy[r * kTile + x];
}

void shared_memory() {
  constexpr int kSize = 3 * kTile;
  std::vector<float> in(kSize * kSize), out(kSize * kSize);
  std::iota(in.begin(), in.end(), 0.0f);
  launch("transpose", transpose, dim3(3, 3), dim3(kTile, kRows), kTile * kTile * 4, nullptr,
         in.data(), out.data(), kSize);
  for (int i = 0; i < kSize * kSize; ++i) {
    expect_equal("transpose", i, out[i], in[i % kSize * kSize + i / kSize]);
  }
}

// Launches of several host threads, whose own accesses are nobody's business.
void host_threads() {
  std::vector<std::string> errors(3);
  std::vector<std::thread> threads;
  for (std::string& error : errors) {
    threads.emplace_back([&error] {
      try {
        for (int i = 0; i < 20; ++i) shared_memory();
      } catch (const std::exception& thrown) {
        error = thrown.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) {
    if (!error.empty()) throw std::runtime_error(error);
  }
}

__global__ void lane_zero_waits() {
  if (threadIdx.x == 0) __syncthreads();
}

// A launch that was refused leaves nothing behind.
void recovery() {
  for (int i = 0; i < 3; ++i) {
    bool refused = false;
    try {
      launch("lane_zero_waits", lane_zero_waits, 1, 64, 0, nullptr);
    } catch (const std::runtime_error&) {
      refused = true;
    }
    expect_equal("refused", i, refused, true);
    shared_memory();
  }
}

// All lanes read, one writes, all read: the barriers of the warp order them.
__global__ void take_turns(int* out) {
  __shared__ int turn[2];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) turn[warp] = 0;
  __syncwarp();
  for (int i = 0; i < 40; ++i) {
    const int now = turn[warp];
    __syncwarp();
    if (now % 32 == lane) turn[warp] = now + 1;
    __syncwarp();
  }
  out[threadIdx.x] = turn[warp];
}

void warp_barriers() {
  std::vector<int> out(64);
  launch("take_turns", take_turns, 1, 64, 0, nullptr, out.data());
  for (int t = 0; t < 64; ++t) expect_equal("take_turns", t, out[t], 40);
}

// Half a warp synchronises on its own.
__global__ void half_warps(int* out) {
  __shared__ int value[32];
  const int lane = static_cast<int>(threadIdx.x), half = lane / 16;
  const unsigned mask = half == 0 ? 0x0000ffffu : 0xffff0000u;
  value[lane] = lane;
  __syncwarp(mask);
  int sum = 0;
  for (int i = 0; i < 16; ++i) sum += value[half * 16 + i];
  __syncwarp(mask);
  value[half * 16 + (lane + 1) % 16] = sum;
  __syncwarp();
  out[blockIdx.x * 32 + threadIdx.x] = value[31 - lane];
}

void partial_barriers() {
  std::vector<int> out(96);
  launch("half_warps", half_warps, 3, 32, 0, nullptr, out.data());
  for (int t = 0; t < 96; ++t) expect_equal("half_warps", t, out[t], t % 32 < 16 ? 376 : 120);
}

__global__ void write_bytes(uint8_t* out, int16_t* pairs, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  out[i] = static_cast<uint8_t>(i);
  pairs[i] = static_cast<int16_t>(out[i] + 1000);
  out[i] = static_cast<uint8_t>(pairs[i]);
}

void bytes() {
  std::vector<uint8_t> out(101);
  std::vector<int16_t> pairs(101);
  launch("write_bytes", write_bytes, 4, 32, 0, nullptr, out.data(), pairs.data(), 101);
  for (int i = 0; i < 101; ++i) expect_equal("write_bytes", i, out[i], (i + 1000) % 256);
}

struct Totals {
  int sum, least, most;
  unsigned bits, mask, odd;
  unsigned long long wide, best;
  int exchanged, claimed;
  double real;
};

__global__ void change(Totals* totals) {
  __shared__ int in_block;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (threadIdx.x == 0) in_block = 0;
  __syncthreads();
  atomicAdd(&in_block, i);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(&totals->sum, in_block);
  atomicMin(&totals->least, -i);
  atomicMax(&totals->most, i);
  atomicOr(&totals->bits, 1u << i % 32);
  atomicAnd(&totals->mask, ~(1u << i % 16));
  atomicXor(&totals->odd, 1u << i % 32);
  atomicAdd(&totals->wide, 1ull << 33);
  atomicMax(&totals->best, static_cast<unsigned long long>(i) << 40);
  atomicExch(&totals->exchanged, 7);
  atomicCAS(&totals->claimed, -1, i);
  atomicAdd(&totals->real, 0.5);
}

void atomics() {
  Totals t{0, 0, 0, 0, ~0u, 0, 0, 0, 0, -1, 0};
  launch("change", change, 3, 64, 0, nullptr, &t);
  expect_equal("sum", 0, t.sum, 192 * 191 / 2);
  expect_equal("least, most", 0, t.most - t.least, 2 * 191);
  expect_equal("bits", 0, t.bits & ~t.mask, 0xffffu);
  expect_equal("odd", 0, t.odd, 0u);
  expect_equal("wide", 0, t.wide, 192ull << 33);
  expect_equal("best", 0, t.best, 191ull << 40);
  expect_equal("exchanged", 0, t.exchanged, 7);
  expect_equal("claimed", 0, t.claimed >= 0 && t.claimed < 192, true);
  expect_equal("real", 0, t.real, 96.0);
}

// The block that is through last adds what the others wrote.
__global__ void add_last(int* partial, unsigned* through, int* total) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = static_cast<int>(blockIdx.x);
    __threadfence();
    last = atomicAdd(through, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last || threadIdx.x != 0) return;
  for (unsigned b = 0; b < gridDim.x; ++b) *total += partial[b];
}

void last_block() {
  std::vector<int> partial(20);
  unsigned through = 0;
  int total = 0;
  launch("add_last", add_last, 20, 32, 0, nullptr, partial.data(), &through, &total);
  expect_equal("add_last", 0, total, 190);
}

__global__ void compute(int64_t* out) {
  const float4 v = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
  int i = 0;
  out[i++] = __popc(0xf0f0u) + __popcll(1ull << 60);
  out[i++] = __ffs(0x10) + __clz(1) + __clz(0);
  out[i++] = __ffsll(1ll << 40) + __clzll(0);
  out[i++] = __brev(1u);
  out[i++] = __umulhi(1u << 31, 6u);
  out[i++] = __float_as_int(__int_as_float(0x3f800001)) + __float_as_uint(0.0f);
  out[i++] = __double_as_longlong(__hiloint2double(3, -1));
  out[i++] = __float2int_rn(2.5f) + __float2int_rd(-0.5f) + __float2int_ru(0.5f);
  out[i++] = static_cast<int64_t>(__fmaf_rn(v.x, v.y, v.z) + __saturatef(v.w));
  out[i++] = min(-1, 2) + max(3u, 4u) + static_cast<int64_t>(max(0.5f, 8.0f));
}

void maths() {
  const int64_t expected[] = {9, 68, 105, 1ll << 31, 3, 0x3f800001, (4ll << 32) - 1, 2, 6, 11};
  std::vector<int64_t> out(10);
  launch("compute", compute, 1, 1, 0, nullptr, out.data());
  for (int i = 0; i < 10; ++i) expect_equal("compute", i, out[i], expected[i]);
}

}  // namespace

std::vector<Check> memory() {
  return {{"indices", indices},
          {"shared_memory", shared_memory},
          {"host_threads", host_threads},
          {"recovery", recovery},
          {"warp_barriers", warp_barriers},
          {"partial_barriers", partial_barriers},
          {"bytes", bytes},
          {"atomics", atomics},
          {"last_block", last_block},
          {"maths", maths}};
}
