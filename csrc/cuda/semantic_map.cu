// semantic_map: the class with the greatest score of every pixel.
//   in      mask logits [B, Q, h, w]   class probabilities p [B, Q, K + 1]   region [B, 2] or null
//   out     labels [B, H, W]   scores [B, H, W] or null
//   maths   sigmoid_first: s = sum_q p_qk sample(sigmoid(x_q)), summed at the grid's corners;
//           else           s = sum_q p_qk sigmoid(sample(x_q)), summed at the pixels
//   bounds  in a cell, sum_q p_qk min_q <= s_k <= sum_q p_qk max_q; small p_qk count as 0 below and
//           as their sum above. A class whose upper bound is less than the greatest lower bound
//           wins nowhere in the cell; the rest are candidates
//   plan    two launches. prepare: the large entries of every class, one warp each, and the tables
//           of both axes. score: a block per tile of up to 4 x 16 cells, with the corners of all
//           queries in shared memory. Lower bounds come from the largest p_qk; a class whose bound
//           over the whole tile reaches none of them is dropped. The others, a group at a time:
//             sigmoid_first   their scores at the corners, a product [K, Q] x [Q, corners] in
//                             float32 FMA from and to shared memory, bound them in the cells, and
//                             are sampled
//             else            sums over their large p_qk bound them in the cells; one sampled
//                             sigmoid serves kSums sums in registers
//           Pixels of cells with one candidate get it; the others are packed into full warps
//   ties    the lowest class. Every sum is in the order of the queries: the same bits on every run
//   limits  queries that do not fit shared memory stay in global memory (not sigmoid_first) or pass
//           through in parts; one bit a class must fit

#include <algorithm>
#include <stdexcept>

#include "cuda/launch.cuh"
#include "cuda/semantic_bounds.cuh"
#include "cuda/semantic_map.hpp"
#include "cuda/semantic_score.cuh"

namespace maskformer::cuda {
namespace {

constexpr float kSmallSum = 0.05f;  // of a class's probabilities that its bounds count as a sum
constexpr float kTop = 0.0625f;     // a class's largest probabilities are not smaller
constexpr float kAboveAll = 2.0f;
constexpr int32_t kGroup = 32;                   // classes that are scored together
constexpr int32_t kPart = 256;                   // queries, where not all fit
constexpr int64_t kPreferredShared = 72 * 1024;  // three blocks on an sm_90
constexpr int64_t kMostSlices = 65535;

__device__ float warp_sum(float value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, lanes);
  }
  return value;
}

// Appends the entries with least <= p < end of one class, in the order of queries. All lanes.
__device__ int32_t append(Entry* entries, int32_t count, const float* prob, int64_t stride,
                          int64_t queries, float least, float end) {
  const int32_t lane = threadIdx.x % kWarp;
  for (int64_t start = 0; start < queries; start += kWarp) {
    const int64_t q = start + lane;
    const float p = q < queries ? prob[q * stride] : -1.0f;
    const bool wanted = p >= least && p < end;
    const uint32_t all = __ballot_sync(kAllLanes, wanted);
    if (wanted) entries[count + __popc(all & ((1u << lane) - 1))] = {static_cast<int32_t>(q), p};
    count += __popc(all);
  }
  return count;
}

// The entries of one class: those from `cutoff` on, a power of two such that the others are few.
__device__ void find_entries(const Arguments& a, int64_t row) {
  const int64_t queries = a.shape.queries, stride = a.probs.classes + 1;
  const int32_t lane = threadIdx.x % kWarp;
  const float* prob = a.probs.all + row / a.probs.classes * queries * stride;
  prob += row % a.probs.classes;
  float cutoff = kTop, others = 0.0f;
  while (true) {
    float sum = 0.0f;
    for (int64_t q = lane; q < queries; q += kWarp) {
      const float p = prob[q * stride];
      sum += p < cutoff ? p : 0.0f;
    }
    others = warp_sum(sum);
    if (!(others > kSmallSum)) break;
    cutoff *= 0.5f;
  }
  Entry* entries = a.entries.of_class + row * queries;
  const int32_t top = append(entries, 0, prob, stride, queries, kTop, kAboveAll);
  const int32_t count = append(entries, top, prob, stride, queries, cutoff, kTop);
  if (lane == 0) {
    a.entries.count[row] = count;
    a.entries.count_top[row] = top;
    a.entries.others[row] = others;
  }
}

__global__ void __launch_bounds__(kThreads) prepare(const Arguments a, int64_t class_blocks) {
  if (blockIdx.x < class_blocks) {
    const int64_t row = int64_t{1} * blockIdx.x * kWarps + threadIdx.x / kWarp;
    if (row < a.shape.images * a.probs.classes) find_entries(a, row);
    return;
  }
  const int64_t index = (blockIdx.x - class_blocks) * kThreads + threadIdx.x;
  if (index < axis_outputs(a.shape)) fill_axes(a.axes, a.logits.region, a.shape, index);
}

// `count`: that of `entries`, of all or of the largest.
__device__ EntryBounds entry_bounds(const Arguments& a, const Tile& t, const Shared& s,
                                    const int32_t* count) {
  const int64_t row = t.image * a.probs.classes;
  return {
      a.entries.of_class + row * a.shape.queries, count + row,    a.entries.others + row, s.prob,
      static_cast<int32_t>(a.shape.queries),      a.plan.corners, a.plan.corner_row()};
}

// Every class may win. Ends with a barrier.
__device__ void all_live(const Arguments& a, const Shared& s) {
  const int64_t classes = a.probs.classes;
  for (int64_t i = threadIdx.x; i < words_of(classes); i += kThreads) {
    s.live[i] = classes - 32 * i >= 32 ? kAllLanes : (1u << (classes - 32 * i)) - 1;
  }
  __syncthreads();
}

// The next group of classes. Begins and ends with a barrier.
__device__ void list_group(const Arguments& a, const Shared& s, int32_t next) {
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const int32_t classes = static_cast<int32_t>(a.probs.classes);
    const int32_t listed = list_bits(s.live, classes, next, a.plan.group, s.listed);
    __syncwarp();
    const int32_t end = listed > 0 ? s.listed[listed - 1] + 1 : classes;
    const int32_t more = list_bits(s.live, classes, end, 1, s.chosen);
    if (threadIdx.x == 0) {
      s.counters->listed = listed;
      s.counters->next = more > 0 ? end : classes;
      if (next == 0) s.counters->undecided = 0;
    }
  }
  __syncthreads();
}

// Which classes of the group may win by their scores at the corners: `chosen`. Ends with a barrier.
__device__ void choose(const Arguments& a, const Shared& s) {
  const CornerBounds bounds{s.score, a.plan.corners, a.plan.corner_row()};
  const int32_t listed = s.counters->listed;
  forget_candidates(a.plan, s, listed, s.live_here);
  raise_thresholds(a.plan, s, bounds, listed);
  __syncthreads();
  find_candidates(a.plan, s, bounds, listed, nullptr, s.live_here);
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const int32_t chosen = list_bits(s.live_here, listed, 0, listed, s.chosen);
    if (threadIdx.x == 0) s.counters->chosen = chosen;
  }
  __syncthreads();
}

template <Method Way>
__device__ void score_undecided(const Arguments& a, const Tile& t, const Shared& s,
                                const Chunk& chunk, const int32_t* chosen, bool first, bool last) {
  for (int32_t i = threadIdx.x; i < s.counters->undecided; i += kThreads) {
    const Pixel p = pixel_of(a, t, chunk, s.undecided[i]);
    Best best;
    if (!first) best = {s.best_score[i], s.best_label[i]};
    score_pixel<Way>(a, t, s, p, chosen, best);
    if (last) {
      write(a, t, p, best);
    } else {
      s.best_score[i] = best.score;
      s.best_label[i] = best.label;
    }
  }
}

// All groups of classes, for one chunk after the other.
template <Method Way>
__device__ void score_chunks(const Arguments& a, const Tile& t, const Shared& s) {
  const bool by_entries = Way == Method::pixels && a.bounded;  // cells know their candidates
  const bool by_corners = Way == Method::corners && a.bounded;
  const int64_t step = int64_t{1} * gridDim.y * kPixels;
  bool ready = false;  // the only group is
  for (int64_t start = int64_t{1} * blockIdx.y * kPixels; start < t.pixels(); start += step) {
    const Chunk chunk = chunk_of(t, start);
    for (int32_t next = 0; next < a.probs.classes;) {
      list_group(a, s, next);
      const bool first = next == 0, last = s.counters->next == a.probs.classes;
      next = s.counters->next;
      if (!ready) {
        if (Way == Method::corners) {
          score_corners(a, t, s);
        } else if (Way == Method::pixels) {
          stage_probabilities(a, t, s, 0, static_cast<int32_t>(a.shape.queries));
          __syncthreads();
        }
        if (by_corners) choose(a, s);
      }
      ready = first && last;
      if (first) {
        const bool decided = a.map.scores == nullptr && (by_entries || (by_corners && last));
        write_decided(a, t, s, chunk, decided, by_corners ? s.listed : nullptr);
      }
      score_undecided<Way>(a, t, s, chunk, by_corners ? s.chosen : nullptr, first, last);
    }
  }
}

// The classes that may win in the tile: `live`. Begins and ends with a barrier.
template <Method Way>
__device__ void find_live(const Arguments& a, const Tile& t, const Shared& s) {
  const int32_t classes = static_cast<int32_t>(a.probs.classes);
  forget_candidates(a.plan, s, classes, s.live);
  __syncthreads();
  raise_thresholds(a.plan, s, entry_bounds(a, t, s, a.entries.count_top), classes);
  find_most(a.plan, s);
  __syncthreads();
  drop_classes(a, t, s, Way == Method::corners ? s.live : s.near);
  __syncthreads();
  if (Way == Method::corners) return;
  find_candidates(a.plan, s, entry_bounds(a, t, s, a.entries.count), classes, s.near, s.live);
  __syncthreads();
}

template <Method Way>
__global__ void __launch_bounds__(kThreads, 3) score_tiles(const Arguments a) {
  __shared__ Tile t;  // not in registers, which the products need
  if (threadIdx.x == 0) t = tile_of_block(a);
  __syncthreads();
  if (t.pixels() <= int64_t{1} * blockIdx.y * kPixels) return;
  const Shared s = shared_of(a.plan.layout);
  if (Way != Method::global && a.plan.resident == a.shape.queries) {
    load_queries<Way>(a, t, s, 0, a.plan.resident);
  }
  for (int32_t i = threadIdx.x; i < a.plan.cells(); i += kThreads) s.threshold[i] = 0;
  if (Way != Method::global && a.bounded && a.plan.resident == a.shape.queries) {
    find_live<Way>(a, t, s);
  } else {
    all_live(a, s);
  }
  score_chunks<Way>(a, t, s);
}

// A tile of these cells with `resident` queries.
Plan plan_with(int32_t rows, int32_t columns, int32_t resident, int32_t group,
               const MapShape& shape, int64_t classes, bool sigmoid_first) {
  Plan plan{};
  plan.rows = rows;
  plan.columns = columns;
  plan.corners = static_cast<int32_t>(ceil_div((rows + 1) * (columns + 1), kQuad) * kQuad);
  for (plan.slots = 1; plan.slots < plan.corners;) plan.slots *= 2;
  plan.resident = resident;
  plan.group = std::min(group, static_cast<int32_t>(ceil_div(classes, kSums) * kSums));
  plan.down = ceil_div(shape.rows, rows);
  plan.across = ceil_div(shape.columns, columns);
  const int64_t pixels =
      ceil_div(rows * shape.height, shape.rows) * ceil_div(columns * shape.width, shape.columns);
  plan.slices = std::min<int64_t>(ceil_div(pixels, kPixels), kMostSlices);
  lay_out_shared(plan, shape.queries, classes, sigmoid_first);
  return plan;
}

// The largest tile whose pixels are scored at once and that fits shared memory; if none does, one
// that does without all queries.
Plan plan_of(const MapShape& shape, int64_t classes, bool sigmoid_first) {
  constexpr int32_t kTiles[][2] = {{4, 16}, {2, 16}, {2, 8}, {2, 4}, {1, 4}, {1, 1}};
  const int64_t most = most_shared_bytes();
  const int32_t queries = static_cast<int32_t>(shape.queries);
  for (const int64_t budget : {std::min(kPreferredShared, most), most}) {
    for (const auto& [rows, columns] : kTiles) {
      const Plan plan = plan_with(rows, columns, queries, kGroup, shape, classes, sigmoid_first);
      const bool one_slice = plan.slices == 1 || plan.columns == 1;
      if (one_slice && plan.shared_bytes <= budget) return plan;
    }
  }
  const int32_t resident = sigmoid_first ? std::min(queries, kPart) : 0;
  const Plan plan = plan_with(1, 4, resident, kSums, shape, classes, sigmoid_first);
  if (plan.shared_bytes <= most) return plan;
  throw std::invalid_argument("semantic_map: " + std::to_string(classes) +
                              " classes do not fit the shared memory of a block");
}

struct Workspace {
  MapAxes axes;
  Entries entries;
};

Workspace lay_out(Arena& arena, const MapShape& shape, int64_t classes) {
  const int64_t rows = shape.images * classes;
  return {lay_out_axes(arena, shape),
          {arena.take<Entry>(rows * shape.queries), arena.take<int32_t>(rows),
           arena.take<int32_t>(rows), arena.take<float>(rows)}};
}

}  // namespace

int64_t semantic_map_workspace(const MapShape& shape, int64_t classes) {
  Arena arena(nullptr);
  lay_out(arena, shape, classes);
  return arena.used();
}

void semantic_map(const MaskLogits& logits, const ClassProbabilities& probs, const LabelMap& map,
                  const MapShape& shape, bool sigmoid_first, std::byte* workspace, Stream stream) {
  if (shape.images == 0) return;
  Arena arena(workspace);
  const Workspace w = lay_out(arena, shape, probs.classes);
  const Arguments a{logits,
                    probs,
                    map,
                    shape,
                    w.axes,
                    w.entries,
                    pays_to_bound(shape),
                    plan_of(shape, probs.classes, sigmoid_first)};
  const int64_t class_blocks = a.bounded ? ceil_div(shape.images * probs.classes, kWarps) : 0;
  const int64_t axis_blocks = ceil_div(axis_outputs(shape), kThreads);
  launch("semantic_map: prepare", prepare, blocks(class_blocks + axis_blocks), kThreads, 0, stream,
         a, class_blocks);
  const dim3 grid(blocks(shape.images * a.plan.down * a.plan.across),
                  static_cast<unsigned>(a.plan.slices));
  const auto kernel = sigmoid_first         ? score_tiles<Method::corners>
                      : a.plan.resident > 0 ? score_tiles<Method::pixels>
                                            : score_tiles<Method::global>;
  launch("semantic_map", kernel, grid, kThreads, a.plan.shared_bytes, stream, a);
}

}  // namespace maskformer::cuda
