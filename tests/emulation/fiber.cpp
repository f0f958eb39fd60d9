#include "emulation/fiber.hpp"

#include <cstdint>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef SIMT_OWN_SWITCH
extern "C" void simt_switch(void** save, void* load);

// Callee-saved registers on the old stack, its pointer to *save; the same backwards from `load`.
asm(R"(
  .text
  .globl simt_switch
  .hidden simt_switch
  .type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size simt_switch, . - simt_switch
)");
#endif

namespace simt {
namespace {

Fiber* left = nullptr;  // the fiber that was switched from last

}  // namespace

void Fiber::prepare(void (*entry)(), std::byte* bottom, size_t bytes) {
  bottom_ = bottom;
  bytes_ = bytes;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(bottom, bytes);  // of the one that had the stack before
#endif
#ifdef SIMT_OWN_SWITCH
  constexpr int kSaved = 6;
  uintptr_t* frame = reinterpret_cast<uintptr_t*>(bottom + bytes) - kSaved - 2;
  for (int i = 0; i < kSaved; ++i) frame[i] = 0;
  frame[kSaved] = reinterpret_cast<uintptr_t>(entry);
  frame[kSaved + 1] = 0;  // entry's return address, and the alignment that a call leaves
  top_ = frame;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = bottom;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Fiber::switch_to(Fiber& next, bool last) {
  left = this;
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack, next.bottom_, next.bytes_);
#else
  static_cast<void>(last);
#endif
#ifdef SIMT_OWN_SWITCH
  simt_switch(&top_, next.top_);
#else
  swapcontext(&context_, &next.context_);
#endif
#ifdef __SANITIZE_ADDRESS__
  const void* bottom = nullptr;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &left->bytes_);
  left->bottom_ = static_cast<std::byte*>(const_cast<void*>(bottom));
#endif
}

void Fiber::entered() {
#ifdef __SANITIZE_ADDRESS__
  const void* bottom = nullptr;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &left->bytes_);
  left->bottom_ = static_cast<std::byte*>(const_cast<void*>(bottom));
#endif
}

}  // namespace simt
