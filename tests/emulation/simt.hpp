// The emulator under cuda.hpp: runs a grid of blocks on the host, every CUDA thread as a fiber.
//
// Blocks run one after another. A thread runs until it waits: at a barrier of its block, or in an
// exchange of its warp. MASKFORMER_EMULATION_SEED permutes the order of blocks and threads.
// What CUDA leaves undefined is an error here, and names the kernel, the block and the thread:
//   * a barrier or an exchange that not all its threads reach, or that they reach in different
//     lines; a lane that was named in a mask and does not exist or has left the kernel
//   * a shuffle that reads a lane which does not take part
//   * races, see races.hpp
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

struct Size {
  unsigned x, y, z;
};

struct Launch {
  const char* name;
  Size grid, block;
  int64_t shared_bytes;
};

// A line of a kernel.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Site& other) const;
};

// What the lanes of a warp do together, on 64 bits of each.
enum class Exchange : int {
  synchronize,
  shuffle,
  shuffle_up,
  shuffle_down,
  shuffle_xor,
  ballot,
  all,
  any,
  match_any,
  reduce_add,
  reduce_min,
  reduce_max,
  reduce_and,
  reduce_or,
  reduce_xor,
};

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;          // of a block
constexpr int64_t kMostShared = 99 * 1024;  // bytes of a block: what sm_86 and sm_89 have

// Runs body(context) for every thread. Throws std::runtime_error for what is listed above.
void run(const Launch& launch, void (*body)(const void*), const void* context);

template <typename Body>
void run(const Launch& launch, const Body& body) {
  run(launch, [](const void* context) { (*static_cast<const Body*>(context))(); }, &body);
}

// __syncthreads(): the number of threads whose predicate holds.
int synchronize_block(bool predicate, Site site);

// `argument`: shuffles: lane, delta or xor in the low half, width above; the others none.
// reduce_min and reduce_max compare values as signed 64-bit numbers.
uint64_t exchange(Exchange what, uint32_t mask, uint64_t value, uint32_t argument, Site site);

void fence();              // __threadfence()
uint32_t lanes_running();  // __activemask(): all lanes that have not left the kernel
void* dynamic_shared();

// Ends the launch with an error that is followed by the block and the thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace simt
