// The functions that code compiled with -fsanitize=thread calls. Kernels know CUDA's atomics only:
// those of C++ are host code's, and are just done.

#include <cstdint>

#include "emulation/races.hpp"

using simt::Kind;

#define SIMT_HOOK(name, kind, bytes)                                          \
  extern "C" void __tsan_##name(void* address) {                              \
    simt::on_access(Kind::kind, address, bytes, __builtin_return_address(0)); \
  }
#define SIMT_HOOKS(bytes)                       \
  SIMT_HOOK(read##bytes, read, bytes)           \
  SIMT_HOOK(write##bytes, write, bytes)         \
  SIMT_HOOK(unaligned_read##bytes, read, bytes) \
  SIMT_HOOK(unaligned_write##bytes, write, bytes)
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)

#define SIMT_ATOMIC(bits, name, builtin)                                                     \
  extern "C" uint##bits##_t __tsan_atomic##bits##_##name(volatile void* address,             \
                                                         uint##bits##_t value, int) {        \
    return builtin(static_cast<volatile uint##bits##_t*>(address), value, __ATOMIC_SEQ_CST); \
  }
#define SIMT_ATOMICS(bits)                                                                         \
  extern "C" uint##bits##_t __tsan_atomic##bits##_load(const volatile void* address, int) {        \
    return __atomic_load_n(static_cast<const volatile uint##bits##_t*>(address),                   \
                           __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                \
  extern "C" void __tsan_atomic##bits##_store(volatile void* address, uint##bits##_t value, int) { \
    __atomic_store_n(static_cast<volatile uint##bits##_t*>(address), value, __ATOMIC_SEQ_CST);     \
  }                                                                                                \
  extern "C" int __tsan_atomic##bits##_compare_exchange_strong(                                    \
      volatile void* address, void* expected, uint##bits##_t value, int, int) {                    \
    return __atomic_compare_exchange_n(static_cast<volatile uint##bits##_t*>(address),             \
                                       static_cast<uint##bits##_t*>(expected), value, false,       \
                                       __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                        \
  }                                                                                                \
  SIMT_ATOMIC(bits, exchange, __atomic_exchange_n)                                                 \
  SIMT_ATOMIC(bits, fetch_add, __atomic_fetch_add)                                                 \
  SIMT_ATOMIC(bits, fetch_sub, __atomic_fetch_sub)
SIMT_ATOMICS(8)
SIMT_ATOMICS(32)
SIMT_ATOMICS(64)

extern "C" void __tsan_read_range(void* address, size_t bytes) {
  simt::on_access(Kind::read, address, bytes, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* address, size_t bytes) {
  simt::on_access(Kind::write, address, bytes, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void*, void*) {}
extern "C" void __tsan_vptr_read(void*) {}
