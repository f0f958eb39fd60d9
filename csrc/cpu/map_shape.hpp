// What the three maps have in common: the mask logits of a batch and the maps' size.
#pragma once

#include <cstdint>

namespace maskformer::cpu {

enum class Precision : int { float32, float16, bfloat16 };

struct MapShape {
  int64_t images, queries, rows, columns;  // mask logits [B, Q, h, w]
  int64_t height, width;                   // of the maps
};

struct MaskLogits {
  const void* data;  // [B, Q, h, w]
  Precision precision;
  const double* region;  // [B, 2] rows and columns of the grid that each image covers
};

namespace {  // a copy for each instruction set

// Pieces of a workspace, each 64-byte aligned. With base 0 it only counts.
class Arena {
 public:
  explicit Arena(const void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}

  template <typename Item>
  Item* take(int64_t count) {
    Item* items = reinterpret_cast<Item*>(base_ + static_cast<uintptr_t>(used_));
    used_ += (count * static_cast<int64_t>(sizeof(Item)) + 63) / 64 * 64;
    return items;
  }

  int64_t used() const { return used_; }

 private:
  uintptr_t base_;
  int64_t used_ = 0;
};

}  // namespace

}  // namespace maskformer::cpu
