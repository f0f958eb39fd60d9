// Targets at the mask grid, nearest: cell (i, j) takes pixel ((i * H) / h, (j * W) / w).
#pragma once

#include <algorithm>
#include <cstdint>

namespace maskformer::cpu {

// The mask grid of one image, row by row, as runs of cells that the same targets cover.
struct TargetRuns {
  int64_t number;         // of runs
  const int32_t* cell;    // [number + 1] where each run begins
  const int32_t* first;   // [number + 1] where each run's targets start in `target`
  const int16_t* target;  // [first[number]]
};

// Finds the runs of one image.
struct GridTargets {
  const void* pixels;  // [H, W] int16 or [T, H, W] bool
  bool overlapping;    // pixels are bool
  int64_t targets, height, width, grid_height, grid_width;
  int32_t* cell;    // [h * w + 1] of TargetRuns
  int32_t* first;   // [h * w + 1]
  int16_t* target;  // [h * w], or [T * h * w] if overlapping
  double* area;     // [T + 1] cells that each target covers, then cells that any covers
};

namespace {

// (index * side) / cells for index = 0, 1, ..., without a division each.
class Nearest {
 public:
  Nearest(int64_t side, int64_t cells) : side_(side), cells_(cells) {}
  int64_t pixel() const { return pixel_; }
  void advance() {
    pixel_ += side_ / cells_;
    remainder_ += side_ % cells_;
    if (remainder_ >= cells_) ++pixel_, remainder_ -= cells_;
  }

 private:
  int64_t side_, cells_, pixel_ = 0, remainder_ = 0;
};

// visit(cell, pixel) for every cell of the grid.
template <typename Visit>
void for_each_cell(const GridTargets& p, const Visit& visit) {
  int32_t cell = 0;
  Nearest row(p.height, p.grid_height);
  for (int64_t i = 0; i < p.grid_height; ++i, row.advance()) {
    Nearest column(p.width, p.grid_width);
    for (int64_t j = 0; j < p.grid_width; ++j, column.advance()) {
      visit(cell++, row.pixel() * p.width + column.pixel());
    }
  }
}

// The runs that are found, one after the other.
class Runs {
 public:
  explicit Runs(const GridTargets& problem) : p_(problem) {}

  // Where the targets of a cell may be written before it is known whether they begin a run.
  int16_t* candidates() { return p_.target + found_; }

  bool as_before(int64_t count) const {
    if (number_ == 0) return false;
    const int16_t* before = p_.target + p_.first[number_ - 1];
    const int16_t* next = p_.target + found_;
    return std::equal(before, next, next, next + count);
  }

  // Ends the run and begins one at `cell`, of the first `count` candidates.
  void begin(int32_t cell, int64_t count) {
    if (number_ > 0) add_areas(cell);
    p_.cell[number_] = cell;
    p_.first[number_++] = found_;
    found_ += static_cast<int32_t>(count);
  }

  // Returns the number of runs.
  int64_t end(int32_t cells) {
    add_areas(cells);
    p_.cell[number_] = cells;
    p_.first[number_] = found_;
    return number_;
  }

 private:
  void add_areas(int32_t end) {
    const double cells = end - p_.cell[number_ - 1];
    const int32_t first = p_.first[number_ - 1];
    for (int32_t i = first; i < found_; ++i) p_.area[p_.target[i]] += cells;
    if (found_ > first) p_.area[p_.targets] += cells;
  }

  const GridTargets& p_;
  int64_t number_ = 0;
  int32_t found_ = 0;
};

int64_t runs_of_segments(const GridTargets& p) {
  constexpr int16_t kVoid = -1, kBeforeAll = -2;
  const int16_t* segments = static_cast<const int16_t*>(p.pixels);
  Runs runs(p);
  int16_t before = kBeforeAll;
  for_each_cell(p, [&](int32_t cell, int64_t pixel) {
    const int16_t index = segments[pixel];
    const int16_t target = index >= 0 && index < p.targets ? index : kVoid;
    if (target == before) return;
    before = *runs.candidates() = target;
    runs.begin(cell, target == kVoid ? 0 : 1);
  });
  return runs.end(static_cast<int32_t>(p.grid_height * p.grid_width));
}

int64_t runs_of_masks(const GridTargets& p) {
  const uint8_t* masks = static_cast<const uint8_t*>(p.pixels);
  const int64_t plane = p.height * p.width;
  Runs runs(p);
  for_each_cell(p, [&](int32_t cell, int64_t pixel) {
    int16_t* const targets = runs.candidates();
    int64_t count = 0;
    for (int64_t t = 0; t < p.targets; ++t) {
      if (masks[t * plane + pixel] != 0) targets[count++] = static_cast<int16_t>(t);
    }
    if (!runs.as_before(count)) runs.begin(cell, count);
  });
  return runs.end(static_cast<int32_t>(p.grid_height * p.grid_width));
}

}  // namespace
}  // namespace maskformer::cpu
