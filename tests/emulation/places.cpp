// Where the emulated threads' stacks and the dynamic shared memory lie.

#include <sys/mman.h>

#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "emulation/engine.hpp"

namespace simt {

alignas(128) static std::byte shared_space[kSharedGuard + kMostShared + kSharedGuard];

std::byte* stacks = nullptr;
std::byte* const shared_memory = shared_space + kSharedGuard;

std::byte* stack_of(int thread) {
  return stacks + static_cast<size_t>(thread) * (kStack + kGuard) + kGuard;
}

void allocate_stacks() {
  if (stacks != nullptr) return;
  void* memory = mmap(nullptr, kAllStacks, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stacks = static_cast<std::byte*>(memory);
  for (size_t t = 0; t < kMostThreads; ++t) {
    mprotect(stacks + t * (kStack + kGuard), kGuard, PROT_NONE);
  }
}

void guard_shared(int64_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(shared_space, sizeof shared_space);
  __asan_unpoison_memory_region(shared_memory, static_cast<size_t>(bytes));
#else
  static_cast<void>(bytes);
#endif
}

void* dynamic_shared() { return shared_memory; }

}  // namespace simt
