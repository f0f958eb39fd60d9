// A tile of grid cells, and what a block holds of it in shared memory: for semantic_map.cu.
#pragma once

#include "cuda/map_axes.cuh"
#include "cuda/semantic_map.hpp"

namespace maskformer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kPixels = 1536;  // that a block scores at a time
constexpr int kQuad = 4;       // corners that a thread reads together
constexpr int kSums = 8;       // classes that a thread sums together
constexpr int kAhead = 5;      // loads of a thread that are under way together
constexpr int kStaged = 2048;  // class probabilities in shared memory at a time, for the corners

constexpr float kWildMark = 2.0f;  // instead of the probability of a logit beyond kWild

// How a pixel gets its scores.
enum class Method {
  corners,  // from scores of the corners: sigmoid_first
  pixels,   // from sigmoids of its own: logits in shared memory
  global,   // the same, where they do not fit
};

// A large probability of a class.
struct alignas(8) Entry {
  int32_t query;
  float prob;
};

// The large probabilities of every class, and the sum of the others: what the bounds of cells read.
struct Entries {
  Entry* of_class;     // [B, K, Q], the largest first
  int32_t* count;      // [B, K]
  int32_t* count_top;  // [B, K] of the largest
  float* others;       // [B, K]
};

// Where a block's shared memory holds what, in words of four bytes.
struct Layout {
  int32_t value, prob, score, staged, best_score, best_label, undecided, threshold, count, last;
  int32_t listed, chosen, near, live, live_here, most, counters;
};

// How an image is cut up.
struct Plan {
  int32_t rows, columns;  // cells of a tile
  int32_t corners;        // (rows + 1) * (columns + 1), in whole quads
  int32_t slots;          // threads over the corners of one query: a power of two
  int32_t resident;       // queries that are in shared memory at a time; 0: they stay in global
  int32_t group;          // classes that are scored together, in whole kSums
  int64_t down, across;   // tiles of an image
  int64_t slices;         // blocks that share the pixels of a tile
  Layout layout;
  int64_t shared_bytes;

  MASKFORMER_HOST_DEVICE int32_t corner_row() const { return columns + 1; }
  MASKFORMER_HOST_DEVICE int32_t cells() const { return rows * columns; }
  __device__ int32_t corner_of(int32_t cell) const {
    return cell / columns * corner_row() + cell % columns;
  }
};

struct Arguments {
  MaskLogits logits;
  ClassProbabilities probs;
  LabelMap map;
  MapShape shape;
  MapAxes axes;
  Entries entries;
  bool bounded;
  Plan plan;
};

struct Counters {
  int32_t listed;     // classes of the group
  int32_t live;       // classes that may win in the tile
  int32_t next;       // the first class after the group
  int32_t chosen;     // classes of the group that are scored
  int32_t undecided;  // pixels that are scored
};

// A block's shared memory.
struct Shared {
  float* value;         // [resident, corners] what is sampled
  float* prob;          // [resident, corners] its probability, or kWildMark
  float* score;         // [group, corners] of the classes (Method::corners)
  float* staged;        // [queries, group] class probabilities
  float* best_score;    // [kPixels] of undecided pixels, where there are several groups
  int32_t* best_label;  // [kPixels]
  uint16_t* undecided;  // [kPixels]
  int32_t* threshold;   // [cells] what an upper bound must reach: a float32 >= 0, as its bits
  int32_t* count;       // [cells] candidates
  int32_t* last;        // [cells] the last one
  int32_t* listed;      // [group] classes, ascending
  int32_t* chosen;      // [group] of them, by their place in `listed`
  uint32_t* near;       // [K / 32] one bit a class: by the bounds of the tile
  uint32_t* live;       // [K / 32] that may win in the tile
  uint32_t* live_here;  // [group / 32] one bit a place in `listed`
  float* most;          // [resident] the greatest probability of a query
  Counters* counters;
};

MASKFORMER_HD int64_t words_of(int64_t bits) { return (bits + 31) / 32; }

// Offsets instead of pointers: they are constants of the launch and take no registers.
__device__ inline Shared shared_of(const Layout& at) {
  float* const floats = dynamic_shared<float>();
  int32_t* const integers = dynamic_shared<int32_t>();
  uint32_t* const bits = dynamic_shared<uint32_t>();
  return {floats + at.value,
          floats + at.prob,
          floats + at.score,
          floats + at.staged,
          floats + at.best_score,
          integers + at.best_label,
          reinterpret_cast<uint16_t*>(bits + at.undecided),
          integers + at.threshold,
          integers + at.count,
          integers + at.last,
          integers + at.listed,
          integers + at.chosen,
          bits + at.near,
          bits + at.live,
          bits + at.live_here,
          floats + at.most,
          reinterpret_cast<Counters*>(integers + at.counters)};
}

// Hands out words; pieces are whole float4.
class Words {
 public:
  explicit Words(int64_t used) : used_(used) {}
  int32_t take(int64_t count) {
    const int64_t at = used_;
    used_ += (count + kQuad - 1) / kQuad * kQuad;
    return static_cast<int32_t>(at);
  }
  int64_t used() const { return used_; }

 private:
  int64_t used_;
};

// Fills plan.layout and plan.shared_bytes. Not `sigmoid_first`: `prob` is for the bounds only, and
// what is needed after them lies in its place.
inline void lay_out_shared(Plan& plan, int64_t queries, int64_t classes, bool sigmoid_first) {
  const int64_t values = int64_t{1} * plan.resident * plan.corners;
  Layout at{};
  Words begin(0);
  at.value = at.prob = begin.take(values);
  Words after = begin;
  if (sigmoid_first) {
    at.score = after.take(int64_t{1} * plan.group * plan.corners);
  } else {
    at.prob = begin.take(values);
  }
  const int64_t staged = plan.resident > 0 ? queries * plan.group : 0;
  at.staged = after.take(sigmoid_first ? kStaged : staged);
  at.best_score = after.take(kPixels);
  at.best_label = after.take(kPixels);
  at.undecided = after.take(kPixels / 2);
  Words rest(begin.used() > after.used() ? begin.used() : after.used());
  at.threshold = rest.take(plan.cells());
  at.count = rest.take(plan.cells());
  at.last = rest.take(plan.cells());
  at.listed = rest.take(plan.group);
  at.chosen = rest.take(plan.group);
  at.near = rest.take(words_of(classes));
  at.live = rest.take(words_of(classes));
  at.live_here = rest.take(words_of(plan.group));
  at.most = rest.take(plan.resident);
  at.counters = rest.take(sizeof(Counters) / sizeof(int32_t));
  plan.layout = at;
  plan.shared_bytes = rest.used() * static_cast<int64_t>(sizeof(float));
}

// Where a block is.
struct Tile {
  int64_t image;
  int32_t row, column;               // its first cell
  int32_t last_row, last_column;     // cells of the image
  int32_t top, left, height, width;  // its pixels

  __device__ int64_t pixels() const { return int64_t{1} * height * width; }
};

__device__ inline Tile tile_of_block(const Arguments& a) {
  Tile t{};
  const int64_t tiles = a.plan.down * a.plan.across, index = blockIdx.x % tiles;
  t.image = blockIdx.x / tiles;
  t.last_row = a.axes.rows.last[t.image];
  t.last_column = a.axes.columns.last[t.image];
  t.row = static_cast<int32_t>(index / a.plan.across) * a.plan.rows;
  t.column = static_cast<int32_t>(index % a.plan.across) * a.plan.columns;
  if (t.row > t.last_row || t.column > t.last_column) return t;
  const AxisTable &rows = a.axes.rows, &columns = a.axes.columns;
  t.top = rows.first_in(t.image, t.row);
  t.left = columns.first_in(t.image, t.column);
  t.height = rows.first_in(t.image, min(t.row + a.plan.rows, t.last_row + 1)) - t.top;
  t.width = columns.first_in(t.image, min(t.column + a.plan.columns, t.last_column + 1)) - t.left;
  return t;
}

// A grid point of the tile, inside the image's region.
__device__ inline int64_t grid_offset(const Arguments& a, const Tile& t, int32_t corner) {
  const int32_t down = min(corner / a.plan.corner_row(), a.plan.rows);
  const int32_t right = corner % a.plan.corner_row();
  const int64_t row = min(t.row + down, t.last_row);
  return row * a.shape.columns + min(t.column + right, t.last_column);
}

// Queries [first, first + count) to shared memory.
template <Method Way, typename Item>
__device__ void load_items(const Arguments& a, const Tile& t, const Shared& s, const Item* items,
                           int32_t first, int32_t count) {
  const int32_t corner = threadIdx.x & (a.plan.slots - 1);
  if (corner >= a.plan.corners) return;
  const int64_t area = a.shape.rows * a.shape.columns;
  const Item* from = items + (t.image * a.shape.queries + first) * area + grid_offset(a, t, corner);
  const int32_t step = kThreads / a.plan.slots;
  const auto keep = [&](int32_t q, Item item) {
    const float logit = to_float(item), p = probability(logit);
    const int32_t at = q * a.plan.corners + corner;
    s.value[at] = Way == Method::corners ? p : logit;
    if (Way == Method::pixels) s.prob[at] = magnitude(logit) < kWild ? p : kWildMark;
  };
  int32_t q = threadIdx.x / a.plan.slots;
  for (; q + (kAhead - 1) * step < count; q += kAhead * step) {
    Item ahead[kAhead];
#pragma unroll
    for (int32_t i = 0; i < kAhead; ++i) ahead[i] = from[(q + i * step) * area];
#pragma unroll
    for (int32_t i = 0; i < kAhead; ++i) keep(q + i * step, ahead[i]);
  }
  for (; q < count; q += step) keep(q, from[q * area]);
}

template <Method Way>
__device__ void load_queries(const Arguments& a, const Tile& t, const Shared& s, int32_t first,
                             int32_t count) {
  switch (a.logits.type) {
    case FloatType::float32:
      return load_items<Way>(a, t, s, static_cast<const float*>(a.logits.data), first, count);
    case FloatType::float16:
      return load_items<Way>(a, t, s, static_cast<const Float16*>(a.logits.data), first, count);
    case FloatType::bfloat16:
      return load_items<Way>(a, t, s, static_cast<const BFloat16*>(a.logits.data), first, count);
  }
}

}  // namespace
}  // namespace maskformer::cuda
