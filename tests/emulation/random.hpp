#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace simt {

// The order in which threads run: splitmix64.
class Random {
 public:
  void seed(uint64_t seed) { state_ = seed; }

  template <typename Item>
  void shuffle(Item* items, size_t count) {
    for (size_t i = count; i > 1; --i)
      std::swap(items[i - 1], items[below(static_cast<uint32_t>(i))]);
  }

 private:
  uint32_t below(uint32_t limit) {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t x = state_;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((x >> 32) * limit >> 32);
  }

  uint64_t state_ = 0;
};

}  // namespace simt
