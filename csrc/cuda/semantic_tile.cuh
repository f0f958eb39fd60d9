// A tile of grid cells in shared memory, and which classes can win in it: for semantic_map.cu.
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

// The large probabilities of every class, and the sum of the others: what the bounds read.
struct Entries {
  Entry* of_class;  // [B, K, Q], in ascending order of queries
  int32_t* count;   // [B, K]
  float* others;    // [B, K]
};

// Where a block's shared memory holds what, in words of four bytes.
struct Layout {
  int32_t value, prob, score, staged, best_score, best_label, undecided, threshold, count, last;
  int32_t listed, chosen, live, live_here, counters;
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
  int32_t entries;    // large probabilities of the image
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
  uint32_t* live;       // [K / 32] one bit a class
  uint32_t* live_here;  // [group / 32] one bit a place in `listed`
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
          bits + at.live,
          bits + at.live_here,
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
  at.live = rest.take(words_of(classes));
  at.live_here = rest.take(words_of(plan.group));
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
#pragma unroll 4
  for (int32_t q = threadIdx.x / a.plan.slots; q < count; q += kThreads / a.plan.slots) {
    const float logit = to_float(from[q * area]);
    const float p = probability(logit);
    s.value[q * a.plan.corners + corner] = Way == Method::corners ? p : logit;
    if (Way == Method::pixels) {
      s.prob[q * a.plan.corners + corner] = magnitude(logit) < kWild ? p : kWildMark;
    }
  }
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

struct Bounds {
  float least, most;
};

__device__ inline Bounds corner_bounds(const float* corner, int row) {
  const Corners c{corner[0], corner[1], corner[row], corner[row + 1]};
  return {least(c), most(c)};
}

// What the lanes of a warp hold, each of another class, before they go through these classes.
struct ClassHead {
  int32_t count = 0;
  float others = 0.0f;
};

// Bounds of class k from its large probabilities.
struct EntryBounds {
  const Entry* entries;  // [K, Q]
  const int32_t* count;  // [K]
  const float* others;   // [K]
  const float* prob;
  int32_t queries, corners, row;

  __device__ ClassHead head(int32_t k) const { return {count[k], others[k]}; }

  __device__ Bounds operator()(int32_t k, const ClassHead& head, int32_t corner) const {
    Bounds sum{0.0f, head.others};
    const Entry* of_class = entries + int64_t{1} * k * queries;
    for (int32_t e = 0; e < head.count; ++e) {
      const Entry entry = of_class[e];
      Bounds b = corner_bounds(prob + entry.query * corners + corner, row);
      if (b.most > 1.0f) b = {0.0f, 1.0f};
      sum.least += entry.prob * b.least;
      sum.most += entry.prob * b.most;
    }
    return sum;
  }
};

// Bounds of the class in place j of the group from its scores at the corners.
struct CornerBounds {
  const float* score;
  int32_t corners, row;

  __device__ ClassHead head(int32_t) const { return {}; }

  __device__ Bounds operator()(int32_t j, const ClassHead&, int32_t corner) const {
    return corner_bounds(score + j * corners + corner, row);
  }
};

// One walk over all contenders and cells. First: the greatest lower bound of every cell. Then: the
// candidates, and which contenders are one somewhere. A warp takes every kWarps-th contender.
template <bool First, typename BoundsOf>
__device__ void walk_bounds(const Plan& plan, const Shared& s, const BoundsOf& bounds_of,
                            int32_t contenders, uint32_t* live) {
  const int32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int32_t start = 0; start < plan.cells(); start += kWarp) {
    const bool exists = start + lane < plan.cells();
    const int32_t cell = exists ? start + lane : start, corner = plan.corner_of(cell);
    const float threshold = First ? 0.0f : __int_as_float(s.threshold[cell]) * (1.0f - kMargin);
    float greatest = 0.0f;
    int32_t count = 0, last = -1;
    for (int32_t base = warp; base < contenders; base += kWarps * kWarp) {
      const int32_t mine = base + kWarps * lane;
      const ClassHead own = mine < contenders ? bounds_of.head(mine) : ClassHead{};
      for (int32_t i = 0; i < kWarp && base + kWarps * i < contenders; ++i) {
        const int32_t n = base + kWarps * i;
        const ClassHead head{__shfl_sync(kAllLanes, own.count, i),
                             __shfl_sync(kAllLanes, own.others, i)};
        const Bounds bounds = bounds_of(n, head, corner);
        greatest = fmaxf(greatest, bounds.least);
        if (First) continue;
        const bool candidate = exists && bounds.most >= threshold;
        count += candidate ? 1 : 0;
        last = candidate ? n : last;
        if (__any_sync(kAllLanes, candidate) && lane == 0) atomicOr(live + n / 32, 1u << n % 32);
      }
    }
    if (exists && First) atomicMax(s.threshold + cell, __float_as_int(greatest));
    if (exists && !First && count > 0) {
      atomicAdd(s.count + cell, count);
      atomicMax(s.last + cell, last);
    }
  }
}

// Fills `live` (bits of the contenders that may win somewhere), count and last. `threshold` keeps
// what it has from other contenders unless `first`. Begins and ends with a barrier.
template <typename BoundsOf>
__device__ void find_candidates(const Plan& plan, const Shared& s, const BoundsOf& bounds_of,
                                int32_t contenders, uint32_t* live, bool first) {
  for (int32_t i = threadIdx.x; i < plan.cells(); i += kThreads) {
    if (first) s.threshold[i] = 0;
    s.count[i] = 0;
    s.last[i] = -1;
  }
  for (int32_t i = threadIdx.x; i < words_of(contenders); i += kThreads) live[i] = 0;
  __syncthreads();
  walk_bounds<true>(plan, s, bounds_of, contenders, live);
  __syncthreads();
  walk_bounds<false>(plan, s, bounds_of, contenders, live);
  __syncthreads();
}

// The next bits that are set in `live`, from `next` on, at most `most`: ascending to `list`. One
// warp. Returns how many.
__device__ inline int32_t list_bits(const uint32_t* live, int32_t bits, int32_t next, int32_t most,
                                    int32_t* list) {
  const int32_t lane = threadIdx.x % kWarp;
  int32_t listed = 0;
  for (int32_t start = next / 32; start < words_of(bits) && listed < most; start += kWarp) {
    const int32_t word = start + lane;
    uint32_t set = word < words_of(bits) ? live[word] : 0;
    if (word == next / 32) set &= kAllLanes << next % 32;
    int32_t before = __popc(set);
    for (int32_t delta = 1; delta < kWarp; delta *= 2) {
      const int32_t other = __shfl_up_sync(kAllLanes, before, static_cast<unsigned>(delta));
      before += lane >= delta ? other : 0;
    }
    const int32_t end = listed + __shfl_sync(kAllLanes, before, kWarp - 1);
    for (int32_t at = listed + before - __popc(set); set != 0 && at < most; set &= set - 1) {
      list[at++] = 32 * word + __ffs(static_cast<int>(set)) - 1;
    }
    listed = min(end, most);
  }
  return listed;
}

}  // namespace
}  // namespace maskformer::cuda
