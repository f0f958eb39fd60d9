#include "emulation/races.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulation/engine.hpp"

// Static shared memory is the module's own uninitialised data: kernels have no other.
extern "C" std::byte __bss_start[] __attribute__((visibility("hidden")));
extern "C" std::byte _end[] __attribute__((visibility("hidden")));

namespace simt {
namespace {

// The threads that accessed a place last, of one warp unless a flag is set.
struct Accesses {
  uint32_t when = 0;  // by `clocks`; 0: never
  uint32_t lanes = 0;
  uint32_t code = 0;  // address of the code, from the module's beginning
  uint8_t warp = 0;
  bool atomic = false;
  bool other_warps = false, other_blocks = false;
};

struct Cell {
  Accesses reads, writes;
};

constexpr uintptr_t kPageBytes = 4096, kWordBytes = 4, kWords = kPageBytes / kWordBytes;
constexpr size_t kMostPages = 4096;  // kept from one launch to the next
constexpr size_t kCached = 1024;
constexpr int64_t kMostAccesses = int64_t{1} << 29;  // of a thread that never waits: half a minute
constexpr uint32_t kLate = 1u << 30;                 // by `clocks`, which then start anew

// Cells for the words of a page, and for the bytes of words that were accessed in part.
struct Page {
  std::array<Cell, kWords> words;
  std::array<bool, kWords> split{};
  std::unique_ptr<std::array<Cell, kPageBytes>> bytes;
};

struct Block {
  uint32_t began;
  uint32_t released;  // what it did before this is ordered before whoever acquires
};

struct Clocks {
  uint32_t now = 1;                             // counts barriers, fences, blocks and launches
  uint32_t launch = 0, block = 0, barrier = 0;  // when the last began, or was passed
  uint32_t fence = 0;                           // of this block; 0: none
  bool acquired = false;                        // this block, from those with a release
  uint32_t seen[kMostThreads][kWarp] =
      {};                     // when a thread last synchronised with a lane of its warp
  std::vector<Block> blocks;  // of the launch
};

Clocks clocks;
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
std::array<std::pair<uintptr_t, Page*>, kCached> cached;

bool between(const void* address, const std::byte* first, const std::byte* last) {
  return address >= first && address < last;
}

bool is_shared(const void* address) {
  return between(address, __bss_start, _end);  // dynamic shared memory, too
}

Page& page_of(uintptr_t number) {
  std::pair<uintptr_t, Page*>& entry = cached[number % kCached];
  if (entry.second != nullptr && entry.first == number) return *entry.second;
  std::unique_ptr<Page>& page = pages[number];
  if (page == nullptr) page = std::make_unique<Page>();
  entry = {number, page.get()};
  return *page;
}

// "panoptic_map.cu:81" for an address in the code, where addr2line is installed: the innermost line
// that is not an inlined function of cuda_*.hpp.
std::string line_of(uint32_t code) {
  Dl_info module{};
  if (dladdr(reinterpret_cast<void*>(&line_of), &module) == 0) return "?";
  char command[1024];
  std::snprintf(command, sizeof command, "addr2line -i -s -e '%s' 0x%x 2>/dev/null",
                module.dli_fname, code - 1);  // the call before the address that it returns to
  std::string line = "?";
  if (FILE* output = popen(command, "r")) {
    char text[512];
    while (std::fgets(text, sizeof text, output) != nullptr) {
      line = text;
      if (line.rfind("cuda_", 0) != 0) break;
    }
    pclose(output);
  }
  return line.substr(0, line.find_first_of(" \n"));
}

uint32_t code_at(const void* address) {
  static const uintptr_t base = [] {
    Dl_info module{};
    dladdr(reinterpret_cast<void*>(&line_of), &module);
    return reinterpret_cast<uintptr_t>(module.dli_fbase);
  }();
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(address) - base);
}

// What accesses now.
struct Access {
  Kind kind;
  const void* address;
  uint32_t code;
  int warp, lane;
  bool shared;
};

const char* verb(Kind kind) {
  return kind == Kind::read ? "reads" : kind == Kind::write ? "writes" : "changes";
}

const char* place(const Access& access) { return access.shared ? "shared" : "global"; }

[[noreturn]] void refuse(const Access& access, const char* what) {
  fail("%s %s memory %s, in %s", verb(access.kind), place(access), what,
       line_of(access.code).c_str());
}

// "threads 3, 7 of its block"
std::string names_of(const Accesses& before) {
  constexpr size_t kLong = 24;
  if (before.when < clocks.block) return "another block";
  std::string names;
  for (int lane = 0; lane < kWarp && names.size() < kLong; ++lane) {
    if ((before.lanes >> lane & 1u) == 0) continue;
    names += (names.empty() ? "" : ", ") + std::to_string(before.warp * kWarp + lane);
  }
  return "thread " + names + " of its block";
}

[[noreturn]] void race(const Access& access, const Accesses& before, bool written) {
  const char* did = before.atomic ? "changed" : written ? "wrote" : "read";
  fail("race: %s %s memory in %s that %s %s in %s, with nothing to order them", verb(access.kind),
       place(access), line_of(access.code).c_str(), names_of(before).c_str(), did,
       line_of(before.code).c_str());
}

bool released(uint32_t when) {
  const auto after = std::upper_bound(clocks.blocks.begin(), clocks.blocks.end(), when,
                                      [](uint32_t w, const Block& b) { return w < b.began; });
  return clocks.acquired && when < (after - 1)->released;
}

// Whether all of `before` is done before what runs now, in the eyes of every thread.
bool ordered(const Accesses& before, const Access& access) {
  if (before.when < clocks.launch) return true;
  if (before.when < clocks.block) return access.shared || released(before.when);
  if (before.other_blocks && !clocks.acquired) return false;
  if (before.when < clocks.barrier) return true;
  if (before.other_warps || before.warp != access.warp) return false;
  const uint32_t* seen = clocks.seen[now.thread];
  for (uint32_t lanes = before.lanes & ~(1u << access.lane); lanes != 0; lanes &= lanes - 1) {
    if (seen[__builtin_ctz(lanes)] <= before.when) return false;
  }
  return true;
}

// Adds what runs now to `accesses`; those that are ordered before it are forgotten.
void add(Accesses& accesses, const Access& access, bool replace) {
  Accesses result;
  result.when = clocks.now;
  result.code = access.code;
  result.warp = static_cast<uint8_t>(access.warp);
  result.lanes = 1u << access.lane;
  result.atomic = access.kind == Kind::atomic;
  if (!replace && accesses.when < clocks.block) {
    result.other_blocks = true;
  } else if (!replace) {
    result.other_blocks = accesses.other_blocks;
    result.other_warps = accesses.other_warps || accesses.warp != access.warp;
    result.lanes |= result.other_warps ? 0 : accesses.lanes;
  }
  accesses = result;
}

void visit(Cell& cell, const Access& access) {
  const bool after_writes = ordered(cell.writes, access);
  const bool atomics = access.kind == Kind::atomic && cell.writes.atomic;
  if (!after_writes && !atomics) race(access, cell.writes, true);
  if (access.shared && access.kind != Kind::write && cell.writes.when < clocks.block) {
    refuse(access, "that nobody has written");
  }
  const bool after_reads = ordered(cell.reads, access);
  if (access.kind == Kind::read) return add(cell.reads, access, after_reads);
  if (!after_reads) race(access, cell.reads, false);
  add(cell.writes, access, after_writes);
}

void visit_word(uintptr_t word, uintptr_t first, uintptr_t last, const Access& access) {
  Page& page = page_of(word / kWords);
  const uintptr_t index = word % kWords;
  if (!page.split[index]) {
    if (first == 0 && last == kWordBytes) return visit(page.words[index], access);
    if (page.bytes == nullptr) page.bytes = std::make_unique<std::array<Cell, kPageBytes>>();
    std::fill_n(page.bytes->begin() + static_cast<int64_t>(index * kWordBytes), kWordBytes,
                page.words[index]);
    page.split[index] = true;
  }
  for (uintptr_t b = first; b < last; ++b) visit((*page.bytes)[index * kWordBytes + b], access);
}

void check_place(const Access& access, size_t bytes) {
  const std::byte* first = static_cast<const std::byte*>(access.address);
  const bool inside = first >= shared_memory && first + bytes <= shared_memory + now.shared_bytes;
  if (!inside && between(access.address, shared_memory - kSharedGuard,
                         shared_memory + kMostShared + kSharedGuard)) {
    refuse(access, "beyond its dynamic bytes");
  }
  if (between(access.address, stacks, stacks + kAllStacks)) {
    refuse(access, "that is local to another thread");
  }
}

}  // namespace

void on_access(Kind kind, const void* address, size_t bytes, const void* code) {
  if (now.thread < 0 || between(address, now.stack, now.stack + kStack)) return;
  const Access access{
      kind, address, code_at(code), now.thread / kWarp, now.thread % kWarp, is_shared(address)};
  check_place(access, bytes);
  if (++now.accesses > kMostAccesses) refuse(access, "again and again: an endless loop?");
  const uintptr_t start = reinterpret_cast<uintptr_t>(address), end = start + bytes;
  for (uintptr_t word = start / kWordBytes; word * kWordBytes < end; ++word) {
    const uintptr_t from = word * kWordBytes;
    visit_word(word, std::max(start, from) - from, std::min(end - from, kWordBytes), access);
  }
}

void begin_launch() {
  if (pages.size() > kMostPages || clocks.now > kLate) {
    pages.clear();
    cached.fill({});
    clocks = Clocks();
  }
  clocks.launch = ++clocks.now;
  clocks.blocks.clear();
}

void begin_block() {
  clocks.block = clocks.barrier = ++clocks.now;
  clocks.fence = 0;
  clocks.acquired = false;
  clocks.blocks.push_back({clocks.now, 0});
}

void on_barrier() { clocks.barrier = ++clocks.now; }

void on_warp_barrier(int first_thread, uint32_t mask) {
  ++clocks.now;
  uint32_t latest[kWarp] = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    const uint32_t* seen = clocks.seen[first_thread + lane];
    for (int other = 0; other < kWarp; ++other)
      latest[other] = std::max(latest[other], seen[other]);
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1u) != 0) latest[lane] = clocks.now;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1u) != 0) std::copy_n(latest, kWarp, clocks.seen[first_thread + lane]);
  }
}

void on_fence() { clocks.fence = ++clocks.now; }

void on_atomic(const void* address, size_t bytes) {
#ifndef SIMT_DETECT_RACES
  return;  // nobody tells of the other accesses
#endif
  on_access(Kind::atomic, address, bytes, __builtin_return_address(0));
  if (clocks.fence == 0 || is_shared(address)) return;
  clocks.blocks.back().released = clocks.fence;
  clocks.acquired = true;
}

}  // namespace simt
