// mask_loss: focal and dice loss of matched masks at full size, and their slopes at the grid.
//   in      logits [N, T, h, w]   pixels [B, H, W] int16 or [B, T, H, W] bool   valid [N, T]
//   out     focal, dice [N, T] float32   slopes [2, N, T, h, w] float32, the gradients of both
//   maths   x = upsampled logit; side z = x inside the target, -x outside; core/focal.hpp
//           d dice / dx = (N / D^2 - 2 y / D) s (1 - s): N and D are known at the end only, so the
//           adjoints of s (1 - s) and of y s (1 - s) are kept apart until then
//   plan    one pass over the pixels. A line of the output is held slot by slot: slot k (w + 1) + c
//           is the k-th pixel between grid columns c - 1 and c. So the horizontal step, and its
//           adjoint, are loops over c without a gather, done once per grid row; the vertical step
//           is a lerp of two lines. Targets are brought into slots once per image (or per mask)
//   sums    float32 in a line, float64 over lines; one thread owns a row: the same bits always
//   void    a slot that does not count has logit -1e30 outside the target, where every term and
//           every derivative is exactly 0

#include "cpu/mask_loss.hpp"

#include <algorithm>

#include "core/arena.hpp"
#include "core/bilinear.hpp"
#include "core/focal.hpp"
#include "cpu/parallel.hpp"

namespace maskformer::cpu {
namespace {

constexpr int16_t kOutside = -1;  // codes of a slot; >= 0: the target's index
constexpr int16_t kUncounted = -2;
constexpr float kNowhere = -1e30f;
constexpr int64_t kNone = -1;
enum Slope { kFocal, kSigmoid, kOverlap, kSlopes };  // of focal, s and y s

// A line of the output in slots.
struct Columns {
  int64_t cells;    // w + 1
  int64_t phases;   // the most pixels between two grid columns
  int64_t slots;    // phases * cells
  float* weight;    // [slots] of the grid column on the right
  int32_t* column;  // [slots] of the output; kNone: no pixel
};

// A line between grid rows, and what flows back to the grid row.
struct Line {
  int64_t row;            // of the grid; kNone: empty
  float* logit;           // [slots]
  float* slope[kSlopes];  // [slots]
};

// One thread's memory.
struct Scratch {
  Line low, high;
  float* padded;   // [w + 2] a grid row, its ends repeated
  float* left;     // [w + 1] what flows to the column left of each cell
  float* right;    // [w + 1]
  float* overlap;  // [h, w] the third slope; two are kept in the output
  int16_t* code;   // [H, slots] a mask in slots
};

struct Sums {
  double focal = 0.0, sigmoid = 0.0, overlap = 0.0;
};

int64_t most_pixels_in_a_cell(int64_t cells, int64_t outputs) {
  int64_t most = 0, first = 0;
  for (int64_t j = 0; j < outputs; ++j) {
    if (bilinear_tap(j, cells, outputs).cell != bilinear_tap(first, cells, outputs).cell) first = j;
    most = std::max(most, j - first + 1);
  }
  return most;
}

Columns take_columns(const MaskLoss& p, Arena& arena) {
  Columns c{};
  c.cells = p.grid_width + 1;
  c.phases = most_pixels_in_a_cell(p.grid_width, p.width);
  c.slots = c.phases * c.cells;
  c.weight = arena.take<float>(c.slots);
  c.column = arena.take<int32_t>(c.slots);
  return c;
}

void fill(const Columns& c, const MaskLoss& p) {
  std::fill_n(c.weight, c.slots, 0.0f);
  std::fill_n(c.column, c.slots, static_cast<int32_t>(kNone));
  int64_t phase = 0, cell = kNone - 1;
  for (int64_t j = 0; j < p.width; ++j) {
    const BilinearTap tap = bilinear_tap(j, p.grid_width, p.width);
    phase = tap.cell == cell ? phase + 1 : 0;
    cell = tap.cell;
    const int64_t slot = phase * c.cells + cell + 1;
    c.weight[slot] = tap.weight;
    c.column[slot] = static_cast<int32_t>(j);
  }
}

Scratch take_scratch(const MaskLoss& p, const Columns& c, Arena& arena) {
  Scratch s{};
  for (Line* line : {&s.low, &s.high}) {
    line->logit = arena.take<float>(c.slots);
    for (float*& slope : line->slope) slope = arena.take<float>(c.slots);
  }
  s.padded = arena.take<float>(c.cells + 1);
  s.left = arena.take<float>(c.cells);
  s.right = arena.take<float>(c.cells);
  if (p.slopes != nullptr) s.overlap = arena.take<float>(p.grid_height * p.grid_width);
  if (p.overlapping) s.code = arena.take<int16_t>(p.height * c.slots);
  return s;
}

// Brings `pixels` [H, W] into slots: code [H, slots], of code_of(pixel's offset).
template <typename CodeOf>
void encode(const MaskLoss& p, const Columns& c, const CodeOf& code_of, int16_t* code) {
  for (int64_t i = 0; i < p.height; ++i) {
    for (int64_t slot = 0; slot < c.slots; ++slot) {
      const int64_t j = c.column[slot];
      code[i * c.slots + slot] = j == kNone ? kUncounted : code_of(i * p.width + j);
    }
  }
}

void encode_segments(const MaskLoss& p, const Columns& c, int64_t image, int16_t* code) {
  const int64_t plane = image * p.height * p.width;
  const int16_t* segments = static_cast<const int16_t*>(p.pixels) + plane;
  const int16_t of_void = p.ignore_void ? kUncounted : kOutside;
  encode(p, c, [=](int64_t i) { return segments[i] < 0 ? of_void : segments[i]; }, code);
}

void encode_mask(const MaskLoss& p, const Columns& c, int64_t image, int64_t target,
                 int16_t* code) {
  const int64_t plane = p.height * p.width;
  const uint8_t* mask =
      static_cast<const uint8_t*>(p.pixels) + (image * p.targets + target) * plane;
  const uint8_t* occupied = p.occupied == nullptr ? nullptr : p.occupied + image * plane;
  const int16_t inside = static_cast<int16_t>(target);
  encode(
      p, c,
      [=](int64_t i) {
        if (occupied != nullptr && occupied[i] == 0) return kUncounted;
        return mask[i] != 0 ? inside : kOutside;
      },
      code);
}

int64_t count(const int16_t* code, int64_t size, int32_t wanted) {
  int64_t found = 0;
  for (int64_t i = 0; i < size; ++i) found += code[i] == wanted;
  return found;
}

// The grid row `row` of `logits` [h, w], upsampled to slots.
void load(const MaskLoss& p, const Columns& c, const std::byte* logits, int64_t row, float* padded,
          Line& line) {
  const int64_t w = p.grid_width;
  to_float32(logits + row * w * size_of(p.type), p.type, w, padded + 1);
  padded[0] = padded[1];
  padded[w + 1] = padded[w];
  for (int64_t k = 0; k < c.slots; k += c.cells) {
    const float* __restrict weight = c.weight + k;
    const float* __restrict grid = padded;
    float* __restrict out = line.logit + k;
#pragma omp simd
    for (int64_t i = 0; i < c.cells; ++i) out[i] = grid[i] + weight[i] * (grid[i + 1] - grid[i]);
  }
  line.row = row;
  if (p.slopes == nullptr) return;
  for (float* slope : line.slope) std::fill_n(slope, c.slots, 0.0f);
}

// Adds what flows back to the line's grid row to the images [h, w], and empties the line.
void flush(const MaskLoss& p, const Columns& c, float* const* images, const Scratch& s,
           Line& line) {
  if (line.row == kNone) return;
  float* __restrict left = s.left;
  float* __restrict right = s.right;
  for (int part = 0; part < kSlopes; ++part) {
    std::fill_n(left, c.cells, 0.0f);
    std::fill_n(right, c.cells, 0.0f);
    for (int64_t k = 0; k < c.slots; k += c.cells) {
      const float* __restrict weight = c.weight + k;
      const float* __restrict slope = line.slope[part] + k;
#pragma omp simd
      for (int64_t i = 0; i < c.cells; ++i) {
        right[i] += weight[i] * slope[i];
        left[i] += slope[i] - weight[i] * slope[i];
      }
    }
    float* __restrict row = images[part] + line.row * p.grid_width;
    row[0] += left[0];
    for (int64_t i = 0; i < p.grid_width; ++i) row[i] += right[i] + left[i + 1];
    row[p.grid_width - 1] += right[p.grid_width];
  }
  line.row = kNone;
}

// One line of the output: its sums, and its slopes into the two lines that it lies between.
template <bool Square, bool Slopes>
Sums visit(const MaskLoss& p, const Columns& c, const Line& low, const Line& high, float weight,
           const int16_t* __restrict code, int32_t target) {
  const float* __restrict low_logit = low.logit;
  const float* __restrict high_logit = high.logit;
  float* __restrict low_focal = low.slope[kFocal];
  float* __restrict low_sigmoid = low.slope[kSigmoid];
  float* __restrict low_overlap = low.slope[kOverlap];
  float* __restrict high_focal = high.slope[kFocal];
  float* __restrict high_sigmoid = high.slope[kSigmoid];
  float* __restrict high_overlap = high.slope[kOverlap];
  const float alpha = p.alpha, gamma = p.gamma, rest = 1.0f - weight;
  const int64_t slots = c.slots;
  const int32_t uncounted = kUncounted - target;
  float focal = 0.0f, sigmoid = 0.0f, overlap = 0.0f;
#pragma omp simd reduction(+ : focal, sigmoid, overlap)
  for (int64_t i = 0; i < slots; ++i) {
    const int32_t difference = code[i] - target;  // 32 bits wide, like the floats it selects
    const bool inside = difference == 0;
    const float between = low_logit[i] + weight * (high_logit[i] - low_logit[i]);
    const float x = difference == uncounted ? kNowhere : between;
    const float z = inside ? x : -x;
    const float e = exp_of_negative(-magnitude(x));
    const float larger = 1.0f / (1.0f + e), smaller = e * larger, log = log_one_plus(e);
    const float right = z < 0.0f ? smaller : larger, wrong = z < 0.0f ? larger : smaller;
    const float cost = softplus(-z, log);
    const float scale =
        (inside ? alpha : 1.0f - alpha) * focal_power<Square>(wrong, softplus(z, log), gamma);
    focal += scale * cost;
    sigmoid += inside ? right : wrong;
    overlap += inside ? right : 0.0f;
    if (Slopes) {
      const float steep = scale * (gamma * right * cost + wrong);
      const float of_focal = inside ? -steep : steep;
      const float of_sigmoid = larger * smaller;
      const float of_overlap = inside ? of_sigmoid : 0.0f;
      low_focal[i] += rest * of_focal;
      low_sigmoid[i] += rest * of_sigmoid;
      low_overlap[i] += rest * of_overlap;
      high_focal[i] += weight * of_focal;
      high_sigmoid[i] += weight * of_sigmoid;
      high_overlap[i] += weight * of_overlap;
    }
  }
  return {focal, sigmoid, overlap};
}

// All lines of one mask. images [kSlopes][h, w]: the slopes are added to them.
template <bool Square, bool Slopes>
Sums visit_all(const MaskLoss& p, const Columns& c, const std::byte* logits, const int16_t* code,
               int32_t target, float* const* images, Scratch& s) {
  Sums total;
  const auto done = [&](Line& line) {
    if (Slopes) flush(p, c, images, s, line);
    line.row = kNone;
  };
  done(s.low);
  for (int64_t i = 0; i < p.height; ++i) {
    const BilinearTap tap = bilinear_tap(i, p.grid_height, p.height);
    const int64_t low = std::max<int64_t>(tap.cell, 0);
    const int64_t high = std::min(tap.cell + 1, p.grid_height - 1);
    if (s.low.row != low) {
      done(s.low);
      if (s.high.row == low) std::swap(s.low, s.high);
      if (s.low.row != low) load(p, c, logits, low, s.padded, s.low);
    }
    if (s.high.row != high) {
      done(s.high);
      load(p, c, logits, high, s.padded, s.high);
    }
    const Sums line =
        visit<Square, Slopes>(p, c, s.low, s.high, tap.weight, code + i * c.slots, target);
    total.focal += line.focal;
    total.sigmoid += line.sigmoid;
    total.overlap += line.overlap;
  }
  done(s.low);
  done(s.high);
  return total;
}

Sums visit_mask(const MaskLoss& p, const Columns& c, const std::byte* logits, const int16_t* code,
                int32_t target, float* const* images, Scratch& s) {
  const auto run = [&](auto square, auto slopes) {
    return visit_all<square.value, slopes.value>(p, c, logits, code, target, images, s);
  };
  using std::false_type, std::true_type;
  if (p.slopes == nullptr) {
    return p.gamma == kSquare ? run(true_type(), false_type()) : run(false_type(), false_type());
  }
  return p.gamma == kSquare ? run(true_type(), true_type()) : run(false_type(), true_type());
}

// Losses and slopes of row `index` of [N, T], whose target has these codes.
void solve(const MaskLoss& p, const Columns& c, int64_t index, int32_t target, const int16_t* code,
           double pixels, double area, Scratch& s) {
  const int64_t cells = p.grid_height * p.grid_width;
  float* images[kSlopes] = {};
  if (p.slopes != nullptr) {
    images[kFocal] = p.slopes + index * cells;
    images[kSigmoid] = images[kFocal] + p.layers * p.images * p.targets * cells;
    images[kOverlap] = s.overlap;
    for (float* image : images) std::fill_n(image, cells, 0.0f);
  }
  p.focal[index] = p.dice[index] = 0.0f;
  if (p.valid[index] == 0) return;
  const std::byte* logits =
      static_cast<const std::byte*>(p.logits) + index * cells * size_of(p.type);
  const Sums sums = visit_mask(p, c, logits, code, target, images, s);
  const double numerator = 2.0 * sums.overlap + 1.0, denominator = sums.sigmoid + area + 1.0;
  p.focal[index] = static_cast<float>(sums.focal / pixels);
  p.dice[index] = static_cast<float>(1.0 - numerator / denominator);
  if (p.slopes == nullptr) return;
  const float of_focal = static_cast<float>(1.0 / pixels);
  const float of_sigmoid = static_cast<float>(numerator / (denominator * denominator));
  const float of_overlap = static_cast<float>(-2.0 / denominator);
  float* __restrict focal = images[kFocal];
  float* __restrict dice = images[kSigmoid];
  const float* __restrict overlap = images[kOverlap];
  for (int64_t i = 0; i < cells; ++i) {
    focal[i] *= of_focal;
    dice[i] = of_sigmoid * dice[i] + of_overlap * overlap[i];
  }
}

}  // namespace

template <InstructionSet Set>
int64_t mask_loss_workspace(const MaskLoss& problem, int threads) {
  Arena shared(nullptr), own(nullptr);
  const Columns c = take_columns(problem, shared);
  if (!problem.overlapping) shared.take<int16_t>(problem.images * problem.height * c.slots);
  take_scratch(problem, c, own);
  return shared.used() + threads * own.used();
}

template <InstructionSet Set>
void mask_loss(const MaskLoss& p, std::byte* workspace, int threads) {
  Arena shared(workspace);
  const Columns c = take_columns(p, shared);
  fill(c, p);
  const int64_t plane = p.height * c.slots;
  int16_t* codes = p.overlapping ? nullptr : shared.take<int16_t>(p.images * plane);
  if (!p.overlapping) {
    parallel_for(p.images, threads,
                 [&](int64_t image, int) { encode_segments(p, c, image, codes + image * plane); });
  }
  Arena sizes(nullptr);
  take_scratch(p, c, sizes);
  parallel_for(p.images * p.targets, threads, [&](int64_t job, int thread) {
    Arena own(workspace + shared.used() + thread * sizes.used());
    Scratch s = take_scratch(p, c, own);
    s.low.row = s.high.row = kNone;
    const int64_t image = job / p.targets, target = job % p.targets;
    const int32_t index = static_cast<int32_t>(target);
    if (p.overlapping) encode_mask(p, c, image, target, s.code);
    const int16_t* code = p.overlapping ? s.code : codes + image * plane;
    const int64_t uncounted = count(code, plane, kUncounted);
    const double pixels = static_cast<double>(std::max<int64_t>(plane - uncounted, 1));
    const double area = static_cast<double>(count(code, plane, index));
    for (int64_t layer = 0; layer < p.layers; ++layer) {
      const int64_t row = (layer * p.images + image) * p.targets + target;
      solve(p, c, row, index, code, pixels, area, s);
    }
  });
}

template int64_t mask_loss_workspace<InstructionSet::MASKFORMER_SET>(const MaskLoss&, int);
template void mask_loss<InstructionSet::MASKFORMER_SET>(const MaskLoss&, std::byte*, int);

}  // namespace maskformer::cpu
