// What the emulator and its race detector know of each other.
#pragma once

#include "emulation/simt.hpp"

namespace simt {

constexpr int64_t kSharedGuard = 64 * 1024;  // behind it: an access is out of bounds

// races.cpp, called by the emulator
void begin_launch();
void begin_block();
void on_barrier();
void on_warp_barrier(int first_thread, uint32_t mask);
void on_fence();

// simt.cpp, called by the race detector
bool in_kernel();
int current_thread();  // of its block
bool on_own_stack(const void* address);
bool on_any_stack(const void* address);
int64_t shared_bytes();

}  // namespace simt
