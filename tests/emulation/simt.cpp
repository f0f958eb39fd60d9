#include "emulation/simt.hpp"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulation/engine.hpp"
#include "emulation/fiber.hpp"
#include "emulation/random.hpp"
#include "emulation/warp.hpp"

namespace simt {

thread_local Now now;

}  // namespace simt

// The names that kernels read as constants, see cuda.hpp.
simt::Size thread_index asm("threadIdx");
simt::Size block_index asm("blockIdx");
simt::Size block_size asm("blockDim");
simt::Size grid_size asm("gridDim");

namespace simt {
namespace {

constexpr int64_t kMostWarps = kMostThreads / kWarp;
constexpr int64_t kMostWaits = int64_t{1} << 31;  // of the threads of a block: minutes

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
  uint32_t in_exchange[kMostWarps];  // lanes that wait in one
  uint32_t lost[kMostWarps];         // lanes that left, wait at a barrier or do not exist
  Fiber host;

  // the launch
  Launch launch{};
  void (*body)(const void*) = nullptr;
  const void* context = nullptr;
  Random random;
  uint64_t seed = 0;  // 0: in their natural order
  std::string error;

  // the block
  int count = 0;              // threads
  int waiting = 0, left = 0;  // threads at the barrier; threads that are through
  int64_t waits = 0;
  int agreed = 0;          // threads whose predicate held at the last barrier
  std::vector<int> ready;  // runs from the back
};

Engine engine;
std::mutex one_launch;
bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

std::string text(Size s) {
  return "(" + std::to_string(s.x) + ", " + std::to_string(s.y) + ", " + std::to_string(s.z) + ")";
}

std::string text(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash == nullptr ? site.file : slash + 1) + ":" + std::to_string(site.line);
}

Thread& current() { return engine.threads[now.thread]; }

int lane_of(int thread) { return thread % kWarp; }

// Ends the launch: the host takes over, and nobody ever comes back.
[[noreturn]] void stop(const std::string& message) {
  if (now.thread < 0) throw std::runtime_error(engine.launch.name + (": " + message));
  engine.error = message + "; block " + text(block_index) + ", thread " + text(current().index);
  current().fiber.switch_to(engine.host, true);
  std::abort();
}

void make_current(int thread) {
  now.thread = thread;
  now.stack = stack_of(thread);
  now.accesses = 0;
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
  if (++engine.waits > kMostWaits) stop("its block waits again and again: an endless loop?");
  Fiber& next = next_fiber();
  if (&next != &me.fiber) me.fiber.switch_to(next);
}

void make_ready(const int* first, int count) {
  const size_t before = engine.ready.size();
  for (int i = count - 1; i >= 0; --i) {
    engine.threads[first[i]].state = State::ready;
    engine.ready.push_back(first[i]);
  }
  if (engine.seed != 0)
    engine.random.shuffle(engine.ready.data() + before, engine.ready.size() - before);
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
// come, because it runs, or waits for lanes that do not include me.
bool meets(const Thread& me, int other) {
  const Thread& thread = engine.threads[other];
  const bool exists = other < engine.count;
  if (exists && thread.state == State::ready) return false;
  if (exists && thread.state == State::in_exchange) {
    if (thread.mask == me.mask && thread.what == me.what && thread.site == me.site) return true;
    if ((thread.mask >> lane_of(now.thread) & 1u) == 0) return false;
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
  engine.lost[now.thread / kWarp] |= 1u << lane_of(now.thread);
  if (engine.waiting > 0) {
    stop("leaves the kernel while thread " +
         text(engine.threads[first_in(State::at_barrier)].index) + " " +
         waits_at(engine.threads[first_in(State::at_barrier)]));
  }
  Fiber& next = next_fiber();
  me.fiber.switch_to(next, true);
  std::abort();
}

// At the beginning of a block and after its barriers: all threads run.
void forget_lost() {
  for (int warp = 0; warp < kMostWarps; ++warp) {
    const int lanes = std::clamp(engine.count - warp * kWarp, 0, kWarp);
    engine.lost[warp] = static_cast<uint32_t>(~uint64_t{0} << lanes);
  }
}

void start_block(Size block) {
  block_index = block;
  engine.waiting = engine.left = 0;
  engine.waits = 0;
  engine.ready.clear();
  std::fill_n(engine.in_exchange, kMostWarps, 0);
  forget_lost();
  for (int t = 0; t < engine.count; ++t) {
    const size_t colour =
        static_cast<size_t>(t) % 64 * 64;  // stacks in different sets of the cache
    engine.threads[t].fiber.prepare(thread_main, stack_of(t), kStack - colour);
  }
  make_all_ready();
}

void run_block(Size block) {
  start_block(block);
  constexpr int kNotANumber = 0xff;  // what nobody has written yet
  std::memset(shared_memory, kNotANumber, static_cast<size_t>(now.shared_bytes));
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
  now.thread = -1;
  if (engine.error.empty()) return;
  if (engine.seed != 0) engine.error += "; seed " + std::to_string(engine.seed);
  throw std::runtime_error(engine.launch.name + (": " + engine.error));
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
  guard_shared(launch.shared_bytes);
  engine.launch = launch;
  now.shared_bytes = launch.shared_bytes;
  engine.error.clear();
  engine.count = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  block_size = launch.block;
  grid_size = launch.grid;
  const char* seed = std::getenv("MASKFORMER_EMULATION_SEED");
  engine.seed = seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10);
  engine.random.seed(engine.seed);
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
  if (engine.seed != 0) engine.random.shuffle(order.data(), order.size());
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
  engine.lost[now.thread / kWarp] |= 1u << lane_of(now.thread);
  if (++engine.waiting == engine.count) {
    engine.waiting = engine.agreed = 0;
    for (int t = 0; t < engine.count; ++t) engine.agreed += engine.threads[t].predicate ? 1 : 0;
    on_barrier();
    forget_lost();
    make_all_ready();
  }
  wait();
  return engine.agreed;
}

uint64_t exchange(Exchange what, uint32_t mask, uint64_t value, uint32_t argument, Site site) {
  Thread& me = current();
  const int lane = lane_of(now.thread), first = now.thread - lane;
  Lanes& lanes = engine.lanes[first / kWarp];
  me.state = State::in_exchange;
  me.what = what;
  me.mask = mask;
  me.site = site;
  lanes.value[lane] = value;
  lanes.argument[lane] = argument;
  if ((mask >> lane & 1u) == 0) fail("%s: its own lane is not in the mask", name_of(what));
  uint32_t& waiting = engine.in_exchange[first / kWarp];
  waiting |= 1u << lane;
  int others[kWarp], count = 0;
  bool complete = (waiting & mask) == mask;
  const bool doomed = (engine.lost[first / kWarp] & mask) != 0;
  for (int other = 0; (complete || doomed) && other < kWarp; ++other) {
    if ((mask >> other & 1u) == 0 || other == lane) continue;
    complete = meets(me, first + other) && complete;
    others[count++] = first + other;
  }
  if (!complete) {
    wait();
    return lanes.result[lane];
  }
  waiting &= ~mask;
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
  const int first = now.thread - lane_of(now.thread);
  uint32_t mask = 0;
  for (int lane = 0; lane < kWarp && first + lane < engine.count; ++lane) {
    const bool running = engine.threads[first + lane].state != State::left;
    mask |= static_cast<uint32_t>(running) << lane;
  }
  return mask;
}

}  // namespace simt
