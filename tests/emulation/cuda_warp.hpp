// Barriers, and what the lanes of a warp do together. Part of cuda.hpp.
#pragma once

#define SIMT_SITE simt::Site site = simt::Site::here()

inline void __syncthreads(SIMT_SITE) { simt::synchronize_block(false, site); }

inline int __syncthreads_count(int predicate, SIMT_SITE) {
  return simt::synchronize_block(predicate != 0, site);
}

inline int __syncthreads_or(int predicate, SIMT_SITE) {
  return simt::synchronize_block(predicate != 0, site) > 0;
}

inline int __syncthreads_and(int predicate, SIMT_SITE) {
  return simt::synchronize_block(predicate == 0, site) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_SITE) {
  simt::exchange(simt::Exchange::synchronize, mask, 0, 0, site);
}

inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() {}  // orders, but waits for nobody: no order between threads
inline unsigned __activemask() { return simt::lanes_running(); }

namespace simt {

template <typename Item>
uint64_t to_bits(Item value) {
  static_assert(sizeof(Item) <= sizeof(uint64_t), "32 or 64 bits");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(Item));
  return bits;
}

template <typename Item>
Item from_bits(uint64_t bits) {
  Item value;
  memcpy(&value, &bits, sizeof(Item));
  return value;
}

template <typename Item>
Item shuffle(Exchange how, unsigned mask, Item value, int which, int width, Site site) {
  const uint32_t argument = (static_cast<uint32_t>(which) & 0xffffu) | static_cast<uint32_t>(width)
                                                                           << 16;
  return from_bits<Item>(exchange(how, mask, to_bits(value), argument, site));
}

inline bool vote(Exchange how, unsigned mask, bool predicate, Site site) {
  return exchange(how, mask, predicate, 0, site) != 0;
}

}  // namespace simt

template <typename Item>
Item __shfl_sync(unsigned mask, Item value, int lane, int width = 32, SIMT_SITE) {
  return simt::shuffle(simt::Exchange::shuffle, mask, value, lane, width, site);
}

template <typename Item>
Item __shfl_up_sync(unsigned mask, Item value, unsigned delta, int width = 32, SIMT_SITE) {
  const int by = static_cast<int>(delta);
  return simt::shuffle(simt::Exchange::shuffle_up, mask, value, by, width, site);
}

template <typename Item>
Item __shfl_down_sync(unsigned mask, Item value, unsigned delta, int width = 32, SIMT_SITE) {
  const int by = static_cast<int>(delta);
  return simt::shuffle(simt::Exchange::shuffle_down, mask, value, by, width, site);
}

template <typename Item>
Item __shfl_xor_sync(unsigned mask, Item value, int lanes, int width = 32, SIMT_SITE) {
  return simt::shuffle(simt::Exchange::shuffle_xor, mask, value, lanes, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
  const bool vote = predicate != 0;
  return static_cast<unsigned>(simt::exchange(simt::Exchange::ballot, mask, vote, 0, site));
}

inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::vote(simt::Exchange::all, mask, predicate != 0, site);
}

inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::vote(simt::Exchange::any, mask, predicate != 0, site);
}

template <typename Item>
unsigned __match_any_sync(unsigned mask, Item value, SIMT_SITE) {
  const uint64_t bits = simt::to_bits(value);
  return static_cast<unsigned>(simt::exchange(simt::Exchange::match_any, mask, bits, 0, site));
}

// redux.sync: 32-bit integers.
#define SIMT_REDUCE(name, Item)                                                                   \
  inline Item __reduce_##name##_sync(unsigned mask, Item value, SIMT_SITE) {                      \
    const uint64_t wide = static_cast<uint64_t>(static_cast<int64_t>(value));                     \
    return static_cast<Item>(simt::exchange(simt::Exchange::reduce_##name, mask, wide, 0, site)); \
  }
SIMT_REDUCE(add, int)
SIMT_REDUCE(add, unsigned)
SIMT_REDUCE(min, int)
SIMT_REDUCE(min, unsigned)
SIMT_REDUCE(max, int)
SIMT_REDUCE(max, unsigned)
SIMT_REDUCE(and, unsigned)
SIMT_REDUCE(or, unsigned)
SIMT_REDUCE(xor, unsigned)
#undef SIMT_REDUCE
#undef SIMT_SITE
