// Atomics: nothing preempts a thread, so a load and a store are one. Part of cuda.hpp.
#pragma once

#include "emulation/races.hpp"

namespace simt {

// Loads and stores that the race detector does not see: it is told of an atomic instead.
template <typename Item>
__attribute__((no_sanitize("thread"), noinline)) Item load(const Item* address) {
  return *address;
}

template <typename Item>
__attribute__((no_sanitize("thread"), noinline)) void store(Item* address, Item value) {
  *address = value;
}

template <typename Item, typename Update>
__forceinline__ Item atomic(Item* address, Update update) {
  on_atomic(address, sizeof(Item));
  const Item old = load(address);
  store(address, static_cast<Item>(update(old)));
  return old;
}

}  // namespace simt

#define SIMT_ATOMIC(name, Item, result)                                 \
  __forceinline__ Item atomic##name(Item* address, Item value) {        \
    return simt::atomic(address, [value](Item old) { return result; }); \
  }
#define SIMT_ATOMICS(Item)                                                                 \
  SIMT_ATOMIC(Add, Item, old + value)                                                      \
  SIMT_ATOMIC(Min, Item, value < old ? value : old)                                        \
  SIMT_ATOMIC(Max, Item, value > old ? value : old)                                        \
  SIMT_ATOMIC(And, Item, old& value)                                                       \
  SIMT_ATOMIC(Or, Item, old | value)                                                       \
  SIMT_ATOMIC(Xor, Item, old ^ value)                                                      \
  SIMT_ATOMIC(Exch, Item, (static_cast<void>(old), value))                                 \
  __forceinline__ Item atomicCAS(Item* address, Item expected, Item value) {               \
    return simt::atomic(address, [=](Item old) { return old == expected ? value : old; }); \
  }
SIMT_ATOMICS(int)
SIMT_ATOMICS(unsigned)
SIMT_ATOMICS(unsigned long long)
SIMT_ATOMIC(Sub, int, old - value)
SIMT_ATOMIC(Sub, unsigned, old - value)
SIMT_ATOMIC(Min, long long, value < old ? value : old)
SIMT_ATOMIC(Max, long long, value > old ? value : old)
SIMT_ATOMIC(Add, float, old + value)
SIMT_ATOMIC(Add, double, old + value)
SIMT_ATOMIC(Exch, float, (static_cast<void>(old), value))
#undef SIMT_ATOMIC
#undef SIMT_ATOMICS
