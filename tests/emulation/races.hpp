// The race detector's entry points for the emulator.
#pragma once

#include <cstddef>

namespace simt {

// A thread is about to read, change and write [address, address + bytes) atomically.
void on_atomic(const void* address, size_t bytes);

}  // namespace simt
