// What the emulator and its race detector know of each other.
#pragma once

#include "emulation/simt.hpp"

namespace simt {

constexpr int64_t kSharedGuard = 64 * 1024;  // before and behind dynamic shared memory

// What runs now, in this thread of the host: others may run host code of a `.cu` file beside it.
struct Now {
  int thread = -1;                   // of its block; -1: host code
  int64_t accesses = 0;              // since it last waited
  const std::byte* stack = nullptr;  // of the thread
  int64_t shared_bytes = 0;          // dynamic shared memory of the launch
};
extern thread_local Now now __attribute__((tls_model("initial-exec")));

extern std::byte* stacks;               // of all threads, kStack bytes and a guard each
extern std::byte* const shared_memory;  // dynamic, kMostShared bytes, between guards

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStack = 256 * 1024;
#else
constexpr size_t kStack = 64 * 1024;
#endif
constexpr size_t kGuard = 4096;  // below each stack: one that overflows faults
constexpr size_t kAllStacks = kMostThreads * (kStack + kGuard);

// places.cpp
void allocate_stacks();
std::byte* stack_of(int thread);
void guard_shared(int64_t bytes);  // of dynamic shared memory: no others may be touched

// races.cpp, called by the emulator
void begin_launch();
void begin_block();
void on_barrier();
void on_warp_barrier(int first_thread, uint32_t mask);
void on_fence();

}  // namespace simt
