#include "emulation/warp.hpp"

namespace simt {
namespace {

bool in(uint32_t mask, int lane) { return (mask >> lane & 1u) != 0; }

// The lane that `lane` reads: of its own segment of `width` lanes, or itself.
int source_of(Exchange what, int lane, uint32_t argument) {
  const int width = static_cast<int>(argument >> 16);
  const int which = static_cast<int>(argument & 0xffffu);
  const int first = lane / width * width;
  switch (what) {
    case Exchange::shuffle:
      return first + which % width;
    case Exchange::shuffle_up:
      return lane - which >= first ? lane - which : lane;
    case Exchange::shuffle_down:
      return lane + which < first + width ? lane + which : lane;
    default: {
      const int other = (lane ^ which) % kWarp;
      return other < first + width ? other : lane;
    }
  }
}

int shuffle(Exchange what, Lanes& lanes) {
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!in(lanes.mask, lane)) continue;
    const int source = source_of(what, lane, lanes.argument[lane]);
    if (!in(lanes.mask, source)) return source;
    lanes.result[lane] = lanes.value[source];
  }
  return -1;
}

uint64_t combine(Exchange what, uint64_t a, uint64_t b) {
  const bool less = static_cast<int64_t>(a) < static_cast<int64_t>(b);
  switch (what) {
    case Exchange::reduce_add:
      return a + b;
    case Exchange::reduce_min:
      return less ? a : b;
    case Exchange::reduce_max:
      return less ? b : a;
    case Exchange::reduce_and:
    case Exchange::all:
      return a & b;
    case Exchange::reduce_xor:
      return a ^ b;
    default:
      return a | b;
  }
}

uint64_t value_for_ballot(const Lanes& lanes, int lane) { return lanes.value[lane] << lane; }

void reduce(Exchange what, Lanes& lanes) {
  bool first = true;
  uint64_t total = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!in(lanes.mask, lane)) continue;
    const uint64_t value =
        what == Exchange::ballot ? value_for_ballot(lanes, lane) : lanes.value[lane];
    total = first ? value : combine(what, total, value);
    first = false;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (in(lanes.mask, lane)) lanes.result[lane] = total;
  }
}

void match(Lanes& lanes) {
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!in(lanes.mask, lane)) continue;
    uint32_t same = 0;
    for (int other = 0; other < kWarp; ++other) {
      const bool equal = in(lanes.mask, other) && lanes.value[other] == lanes.value[lane];
      same |= static_cast<uint32_t>(equal) << other;
    }
    lanes.result[lane] = same;
  }
}

}  // namespace

const char* name_of(Exchange what) {
  constexpr const char* kNames[] = {"__syncwarp",        "__shfl_sync",       "__shfl_up_sync",
                                    "__shfl_down_sync",  "__shfl_xor_sync",   "__ballot_sync",
                                    "__all_sync",        "__any_sync",        "__match_any_sync",
                                    "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync",
                                    "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync"};
  return kNames[static_cast<int>(what)];
}

int compute(Exchange what, Lanes& lanes) {
  switch (what) {
    case Exchange::synchronize:
      return -1;
    case Exchange::shuffle:
    case Exchange::shuffle_up:
    case Exchange::shuffle_down:
    case Exchange::shuffle_xor:
      return shuffle(what, lanes);
    case Exchange::match_any:
      match(lanes);
      return -1;
    default:
      reduce(what, lanes);
      return -1;
  }
}

}  // namespace simt
