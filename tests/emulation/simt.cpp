#include "emulation/simt.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulation/engine.hpp"
#include "emulation/fiber.hpp"
#include "emulation/warp.hpp"

// The names that kernels read as constants, see cuda.hpp.
simt::Size thread_index asm("threadIdx");
simt::Size block_index asm("blockIdx");
simt::Size block_size asm("blockDim");
simt::Size grid_size asm("gridDim");

namespace simt {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStack = 256 * 1024;
#else
constexpr size_t kStack = 64 * 1024;
#endif
constexpr size_t kGuard = 4096;
constexpr int64_t kMostWarps = kMostThreads / kWarp;

enum class State : uint8_t { ready, at_barrier, in_exchange, left };

struct Thread {
  Fiber fiber;
  Size index;
  State state;
  bool predicate;  // at a barrier
  Exchange what;   // in an exchange
  uint32_t mask;
  Site site;
};

struct Engine {
  Thread threads[kMostThreads];
  Lanes lanes[kMostWarps];
  std::byte* stacks = nullptr;
  Fiber host;

  // the launch
  Launch launch{};
  void (*body)(const void*) = nullptr;
  const void* context = nullptr;
  std::mt19937_64 random;
  bool permuted = false;
  std::string error;

  // the block
  int count = 0;              // threads
  int current = -1;           // the thread that runs; -1: host code
  int waiting = 0, left = 0;  // threads at the barrier; threads that are through
  int agreed = 0;             // threads whose predicate held at the last barrier
  std::vector<int> ready;     // runs from the back
};

Engine engine;
std::mutex one_launch;
alignas(128) std::byte shared_memory[kMostShared + kSharedGuard];

bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

std::string text(Size s) {
  return "(" + std::to_string(s.x) + ", " + std::to_string(s.y) + ", " + std::to_string(s.z) + ")";
}

std::string text(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash == nullptr ? site.file : slash + 1) + ":" + std::to_string(site.line);
}

Thread& current() { return engine.threads[engine.current]; }

int lane_of(int thread) { return thread % kWarp; }

// Ends the launch: the host takes over, and nobody ever comes back.
[[noreturn]] void stop(const std::string& message) {
  if (engine.current < 0) throw std::runtime_error(engine.launch.name + (": " + message));
  engine.error = message + "; block " + text(block_index) + ", thread " + text(current().index);
  current().fiber.switch_to(engine.host, true);
  std::abort();
}

void make_current(int thread) {
  engine.current = thread;
  thread_index = engine.threads[thread].index;
}

Fiber& next_fiber() {
  if (engine.ready.empty()) return engine.host;
  make_current(engine.ready.back());
  engine.ready.pop_back();
  return current().fiber;
}

// Lets the others run until this thread is ready again.
void wait() {
  Thread& me = current();
  Fiber& next = next_fiber();
  if (&next != &me.fiber) me.fiber.switch_to(next);
}

void make_ready(const int* first, int count) {
  const size_t before = engine.ready.size();
  for (int i = count - 1; i >= 0; --i) {
    engine.threads[first[i]].state = State::ready;
    engine.ready.push_back(first[i]);
  }
  if (engine.permuted) {
    std::shuffle(engine.ready.begin() + static_cast<int64_t>(before), engine.ready.end(),
                 engine.random);
  }
}

void make_all_ready() {
  int all[kMostThreads];
  std::iota(all, all + engine.count, 0);
  make_ready(all, engine.count);
}

std::string waits_at(const Thread& thread) {
  switch (thread.state) {
    case State::at_barrier:
      return "waits at the barrier in " + text(thread.site);
    case State::in_exchange:
      return std::string("waits in ") + name_of(thread.what) + " in " + text(thread.site);
    case State::left:
      return "has left the kernel";
    default:
      return "is elsewhere";
  }
}

// The first thread of the block in this state, or -1.
int first_in(State state) {
  for (int t = 0; t < engine.count; ++t) {
    if (engine.threads[t].state == state) return t;
  }
  return -1;
}

// Whether `other`, whom `me` names in its mask, waits in the same exchange; false if it may yet
// come.
bool meets(const Thread& me, int other) {
  const Thread& thread = engine.threads[other];
  const bool exists = other < engine.count;
  if (exists && thread.state == State::ready) return false;
  if (exists && thread.state == State::in_exchange && thread.mask == me.mask &&
      thread.what == me.what && thread.site == me.site) {
    return true;
  }
  stop(std::string("reaches ") + name_of(me.what) + " in " + text(me.site) + ", which names lane " +
       std::to_string(lane_of(other)) + "; that one " +
       (exists ? waits_at(thread) : "does not exist"));
}

void thread_main() {
  Fiber::entered();
  engine.body(engine.context);
  Thread& me = current();
  me.state = State::left;
  ++engine.left;
  if (engine.waiting > 0) {
    stop("leaves the kernel while thread " +
         text(engine.threads[first_in(State::at_barrier)].index) + " " +
         waits_at(engine.threads[first_in(State::at_barrier)]));
  }
  Fiber& next = next_fiber();
  me.fiber.switch_to(next, true);
  std::abort();
}

void start_block(Size block) {
  block_index = block;
  engine.waiting = engine.left = 0;
  engine.ready.clear();
  for (int t = 0; t < engine.count; ++t) {
    std::byte* bottom = engine.stacks + static_cast<size_t>(t) * (kStack + kGuard) + kGuard;
    engine.threads[t].fiber.prepare(thread_main, bottom, kStack);
  }
  make_all_ready();
}

void run_block(Size block) {
  start_block(block);
  begin_block();
  engine.host.switch_to(next_fiber());
  if (engine.error.empty() && engine.left < engine.count) {
    const int at_barrier = first_in(State::at_barrier), in_warp = first_in(State::in_exchange);
    make_current(at_barrier >= 0 ? at_barrier : in_warp);
    const int other = at_barrier >= 0 ? in_warp : -1;
    engine.error = waits_at(current()) + " for ever" +
                   (other < 0 ? ""
                              : ", thread " + text(engine.threads[other].index) + " " +
                                    waits_at(engine.threads[other])) +
                   "; block " + text(block_index) + ", thread " + text(current().index);
  }
  engine.current = -1;
  if (!engine.error.empty()) throw std::runtime_error(engine.launch.name + (": " + engine.error));
}

void allocate_stacks() {
  if (engine.stacks != nullptr) return;
  constexpr size_t kBytes = kMostThreads * (kStack + kGuard);
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  engine.stacks = static_cast<std::byte*>(memory);
  for (size_t t = 0; t < kMostThreads; ++t) {  // below each: a stack that overflows faults
    mprotect(engine.stacks + t * (kStack + kGuard), kGuard, PROT_NONE);
  }
}

void check(const Launch& launch) {
  const int64_t threads = int64_t{1} * launch.block.x * launch.block.y * launch.block.z;
  std::string wrong;
  if (threads < 1 || threads > kMostThreads || launch.block.z > 64) {
    wrong = "block " + text(launch.block);
  } else if (launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 || launch.grid.z > 65535) {
    wrong = "grid " + text(launch.grid);
  } else if (launch.shared_bytes < 0 || launch.shared_bytes > kMostShared) {
    wrong = std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory";
  }
  if (!wrong.empty())
    throw std::runtime_error(std::string(launch.name) + ": no GPU takes " + wrong);
}

void set_up(const Launch& launch) {
  check(launch);
  allocate_stacks();
  engine.launch = launch;
  engine.error.clear();
  engine.count = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  block_size = launch.block;
  grid_size = launch.grid;
  const char* seed = std::getenv("MASKFORMER_EMULATION_SEED");
  engine.permuted = seed != nullptr && std::strcmp(seed, "0") != 0;
  engine.random.seed(seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10));
  for (int t = 0; t < engine.count; ++t) {
    const unsigned i = static_cast<unsigned>(t), x = launch.block.x, y = launch.block.y;
    engine.threads[t].index = {i % x, i / x % y, i / x / y};
  }
}

}  // namespace

bool Site::operator==(const Site& other) const {
  return line == other.line && same(file, other.file);
}

void fail(const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  stop(message);
}

void run(const Launch& launch, void (*body)(const void*), const void* context) {
  const std::lock_guard<std::mutex> lock(one_launch);
  set_up(launch);
  engine.body = body;
  engine.context = context;
  const int64_t xs = launch.grid.x, ys = launch.grid.y, blocks = xs * ys * launch.grid.z;
  std::vector<int64_t> order(static_cast<size_t>(blocks));
  std::iota(order.begin(), order.end(), 0);
  if (engine.permuted) std::shuffle(order.begin(), order.end(), engine.random);
  begin_launch();
  for (const int64_t i : order) {
    run_block({static_cast<unsigned>(i % xs), static_cast<unsigned>(i / xs % ys),
               static_cast<unsigned>(i / xs / ys)});
  }
}

int synchronize_block(bool predicate, Site site) {
  Thread& me = current();
  me.predicate = predicate;
  me.site = site;
  if (engine.left > 0) {
    stop("reaches the barrier in " + text(site) + ", which thread " +
         text(engine.threads[first_in(State::left)].index) + " never will: it has left the kernel");
  }
  if (engine.waiting > 0) {
    const Thread& other = engine.threads[first_in(State::at_barrier)];
    if (!(other.site == site)) {
      stop("reaches the barrier in " + text(site) + " while thread " + text(other.index) + " " +
           waits_at(other));
    }
  }
  me.state = State::at_barrier;
  if (++engine.waiting == engine.count) {
    engine.waiting = engine.agreed = 0;
    for (int t = 0; t < engine.count; ++t) engine.agreed += engine.threads[t].predicate ? 1 : 0;
    on_barrier();
    make_all_ready();
  }
  wait();
  return engine.agreed;
}

uint64_t exchange(Exchange what, uint32_t mask, uint64_t value, uint32_t argument, Site site) {
  Thread& me = current();
  const int lane = lane_of(engine.current), first = engine.current - lane;
  Lanes& lanes = engine.lanes[first / kWarp];
  me.state = State::in_exchange;
  me.what = what;
  me.mask = mask;
  me.site = site;
  lanes.value[lane] = value;
  lanes.argument[lane] = argument;
  if ((mask >> lane & 1u) == 0) fail("%s: its own lane is not in the mask", name_of(what));
  int others[kWarp], count = 0;
  bool complete = true;
  for (int other = 0; other < kWarp; ++other) {
    if ((mask >> other & 1u) == 0 || other == lane) continue;
    complete = meets(me, first + other) && complete;
    others[count++] = first + other;
  }
  if (!complete) {
    wait();
    return lanes.result[lane];
  }
  lanes.mask = mask;
  const int unread = compute(what, lanes);
  if (unread >= 0) fail("%s: reads lane %d, which is not in the mask", name_of(what), unread);
  if (what == Exchange::synchronize) on_warp_barrier(first, mask);
  me.state = State::ready;
  make_ready(others, count);
  return lanes.result[lane];
}

void fence() { on_fence(); }

uint32_t lanes_running() {
  const int first = engine.current - lane_of(engine.current);
  uint32_t mask = 0;
  for (int lane = 0; lane < kWarp && first + lane < engine.count; ++lane) {
    const bool running = engine.threads[first + lane].state != State::left;
    mask |= static_cast<uint32_t>(running) << lane;
  }
  return mask;
}

void* dynamic_shared() { return shared_memory; }

bool in_kernel() { return engine.current >= 0; }

int current_thread() { return engine.current; }

bool on_own_stack(const void* address) { return current().fiber.owns(address); }

bool on_any_stack(const void* address) {
  const std::byte* byte = static_cast<const std::byte*>(address);
  return static_cast<size_t>(byte - engine.stacks) < kMostThreads * (kStack + kGuard);
}

int64_t shared_bytes() { return engine.launch.shared_bytes; }

}  // namespace simt
