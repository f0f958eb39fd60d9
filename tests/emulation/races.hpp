// The race detector. Kernels are compiled with -fsanitize=thread, which calls __tsan_read4 and its
// like before every access to memory that others could see; hooks.cpp defines those functions, and
// libtsan is not linked.
//
// An access conflicts with an earlier one of the same bytes, in the same launch and by another
// thread, if one of them writes and they are not both atomic. It must be ordered after it: by
// __syncthreads(), by __syncwarp() of lanes that include both, or across blocks by __threadfence()
// and an atomic on each side. Also refused are shared memory that is read before anything is
// written, dynamic shared memory beyond the launch's bytes, and another thread's local memory.
#pragma once

#include <cstddef>

namespace simt {

enum class Kind { read, write, atomic };

// What runs now is about to access [address, address + bytes), in the line that `code` is from.
// Host code is not looked at.
void on_access(Kind kind, const void* address, size_t bytes, const void* code);

// A thread is about to read, change and write [address, address + bytes) atomically.
void on_atomic(const void* address, size_t bytes);

}  // namespace simt
