// A workspace handed out piece by piece.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskformer::cpu {
namespace {  // a copy for each instruction set

// Each piece lies on cache lines of its own. From null the arena only counts.
class Arena {
 public:
  explicit Arena(std::byte* start) : start_(start) {}

  template <typename Item>
  Item* take(int64_t count) {
    Item* items = start_ == nullptr ? nullptr : reinterpret_cast<Item*>(start_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(Item)) + 63) / 64 * 64;
    return items;
  }
  int64_t used() const { return used_; }

 private:
  std::byte* start_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace maskformer::cpu
