// The race detector. Kernels are compiled with -fsanitize=thread, which calls __tsan_read4 and its
// like before every access to memory that others could see; races.cpp defines those functions, and
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

// A thread is about to read, change and write [address, address + bytes) atomically.
void on_atomic(const void* address, size_t bytes);

}  // namespace simt
