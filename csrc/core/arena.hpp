// A workspace handed out piece by piece.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.hpp"

namespace maskformer {
namespace {  // a copy for each instruction set

// Each piece lies on cache lines of its own. From null the arena only counts.
class Arena {
 public:
  MASKFORMER_HOST_DEVICE explicit Arena(std::byte* start) : start_(start) {}

  template <typename Item>
  MASKFORMER_HOST_DEVICE Item* take(int64_t count) {
    Item* items = start_ == nullptr ? nullptr : reinterpret_cast<Item*>(start_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(Item)) + 63) / 64 * 64;
    return items;
  }
  MASKFORMER_HOST_DEVICE int64_t used() const { return used_; }

 private:
  std::byte* start_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace maskformer
