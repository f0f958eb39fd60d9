// Threads of execution that hand over to each other by name: one runs at a time, nothing preempts.
// On x86-64 a switch is 14 instructions; elsewhere it is swapcontext.
#pragma once

#include <cstddef>

#if defined(__x86_64__) && !defined(SIMT_PORTABLE)
#define SIMT_OWN_SWITCH
#else
#include <ucontext.h>
#endif

namespace simt {

class Fiber {
 public:
  // `entry` runs on the stack [bottom, bottom + bytes) at the first switch, and never returns.
  void prepare(void (*entry)(), std::byte* bottom, size_t bytes);

  // From this fiber, which is running, to `next`; returns when somebody switches back. `last`:
  // nobody will, and this fiber's stack is dead.
  void switch_to(Fiber& next, bool last = false);

  // At the beginning of `entry`.
  static void entered();

  bool owns(const void* address) const {
    return static_cast<size_t>(static_cast<const std::byte*>(address) - bottom_) < bytes_;
  }

 private:
#ifdef SIMT_OWN_SWITCH
  void* top_ = nullptr;  // where the registers are saved
#else
  ucontext_t context_{};
#endif
  std::byte* bottom_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace simt
