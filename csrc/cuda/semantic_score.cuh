// How pixels are scored, a group of classes at a time: for semantic_map.cu.
#pragma once

#include "cuda/semantic_tile.cuh"

namespace maskformer::cuda {
namespace {

// The classes of the group, in whole kSums.
__device__ inline int32_t padded_group(const Shared& s) {
  return (s.counters->listed + kSums - 1) / kSums * kSums;
}

// Probabilities of the group's classes, of `count` queries: staged [count, padded], 0 in the pad.
__device__ inline void stage_probabilities(const Arguments& a, const Tile& t, const Shared& s,
                                           int64_t first, int32_t count) {
  const int32_t padded = padded_group(s);
  const float* from = a.probs.all + (t.image * a.shape.queries + first) * (a.probs.classes + 1);
  for (int32_t i = threadIdx.x; i < count * padded; i += kThreads) {
    const int32_t q = i / padded, j = i % padded;
    s.staged[i] = j < s.counters->listed ? from[q * (a.probs.classes + 1) + s.listed[j]] : 0.0f;
  }
}

__device__ inline void load_floats(const float* from, float (&p)[2]) {
  const float2 pair = *reinterpret_cast<const float2*>(from);
  p[0] = pair.x;
  p[1] = pair.y;
}

template <int Count>
__device__ void load_floats(const float* from, float (&p)[Count]) {
#pragma unroll
  for (int c = 0; c < Count; c += kQuad) {
    const float4 quad = *reinterpret_cast<const float4*>(from + c);
    p[c] = quad.x;
    p[c + 1] = quad.y;
    p[c + 2] = quad.z;
    p[c + 3] = quad.w;
  }
}

// score[j, corner] += sum_q staged[q, j] * value[q, corner]; a thread sums Classes x kQuad of them.
template <int Classes>
__device__ void add_product(const Plan& plan, const float* value, const float* staged, float* score,
                            int32_t queries, int32_t padded, bool first) {
  const int32_t quads = plan.corners / kQuad;
  for (int32_t item = threadIdx.x; item < padded / Classes * quads; item += kThreads) {
    const int32_t j = item / quads * Classes, corner = item % quads * kQuad;
    float* out = score + j * plan.corners + corner;
    float sum[Classes][kQuad], p[Classes], v[kQuad];
#pragma unroll
    for (int c = 0; c < Classes; ++c) {
      if (first) {
        for (int x = 0; x < kQuad; ++x) sum[c][x] = 0.0f;
      } else {
        load_floats(out + c * plan.corners, sum[c]);
      }
    }
    const float* probs = staged + j;
    const float* values = value + corner;
#pragma unroll 1
    for (int32_t q = 0; q < queries; ++q, probs += padded, values += plan.corners) {
      load_floats(values, v);
      load_floats(probs, p);
#pragma unroll
      for (int c = 0; c < Classes; ++c) {
        for (int x = 0; x < kQuad; ++x) sum[c][x] = fmaf(p[c], v[x], sum[c][x]);
      }
    }
#pragma unroll
    for (int c = 0; c < Classes; ++c) {
      *reinterpret_cast<float4*>(out + c * plan.corners) =
          make_float4(sum[c][0], sum[c][1], sum[c][2], sum[c][3]);
    }
  }
}

// The group's scores at the corners. Ends with a barrier.
__device__ inline void score_corners(const Arguments& a, const Tile& t, const Shared& s) {
  constexpr int kFew = 16;  // classes that larger pieces would leave to few threads
  const int32_t queries = static_cast<int32_t>(a.shape.queries);
  const int32_t padded = padded_group(s), step = min(a.plan.resident, kStaged / padded);
  for (int32_t first = 0, count; first < queries; first += count) {
    const int32_t part = first % a.plan.resident;
    count = min(min(step, a.plan.resident - part), queries - first);
    if (first > 0) __syncthreads();
    if (part == 0 && a.plan.resident < queries) {
      load_queries<Method::corners>(a, t, s, first, min(a.plan.resident, queries - first));
    }
    stage_probabilities(a, t, s, first, count);
    __syncthreads();
    const float* value = s.value + part * a.plan.corners;
    if (padded <= kFew) {
      add_product<2>(a.plan, value, s.staged, s.score, count, padded, first == 0);
    } else {
      add_product<kSums>(a.plan, value, s.staged, s.score, count, padded, first == 0);
    }
  }
  __syncthreads();
}

// The pixels of a tile that are scored at a time, row by row.
struct Chunk {
  int32_t top, left;  // the first one
  int32_t pixels;
};

__device__ inline Chunk chunk_of(const Tile& t, int64_t first) {
  return {static_cast<int32_t>(t.top + first / t.width), static_cast<int32_t>(first % t.width),
          static_cast<int32_t>(min(t.pixels() - first, static_cast<int64_t>(kPixels)))};
}

// A pixel of the tile.
struct Pixel {
  int32_t y, x;                   // of the map
  int32_t cell_row, cell_column;  // of the tile
};

__device__ inline Pixel pixel_of(const Arguments& a, const Tile& t, const Chunk& chunk,
                                 int32_t index) {
  const int32_t along = chunk.left + index;
  Pixel p{};
  p.y = chunk.top + along / t.width;
  p.x = t.left + along % t.width;
  p.cell_row = a.axes.rows.low_at(t.image, p.y) - t.row;
  p.cell_column = a.axes.columns.low_at(t.image, p.x) - t.column;
  return p;
}

struct Best {
  float score = -1.0f;
  int32_t label = 0;

  __device__ void compete(float other, int32_t its_label) {
    const bool better = other > score;
    score = better ? other : score;
    label = better ? its_label : label;
  }
};

__device__ inline void write(const Arguments& a, const Tile& t, const Pixel& p, const Best& best) {
  const int64_t at = (t.image * a.shape.height + p.y) * a.shape.width + p.x;
  const int32_t label = best.label;
  switch (a.map.bytes) {
    case 1:
      static_cast<uint8_t*>(a.map.labels)[at] = static_cast<uint8_t>(label);
      break;
    case 2:
      static_cast<uint16_t*>(a.map.labels)[at] = static_cast<uint16_t>(label);
      break;
    case 4:
      static_cast<int32_t*>(a.map.labels)[at] = label;
      break;
    default:
      static_cast<int64_t*>(a.map.labels)[at] = label;
  }
  if (a.map.scores != nullptr) a.map.scores[at] = best.score;
}

// Writes the pixels of decided cells and lists the others. `classes` names the candidates, if they
// are not their own names. Ends with a barrier.
__device__ inline void write_decided(const Arguments& a, const Tile& t, const Shared& s,
                                     const Chunk& chunk, bool decided, const int32_t* classes) {
  const int32_t lane = threadIdx.x % kWarp;
  for (int32_t base = threadIdx.x - lane; base < chunk.pixels; base += kThreads) {
    bool listed = base + lane < chunk.pixels;
    if (decided && listed) {
      const Pixel p = pixel_of(a, t, chunk, base + lane);
      const int32_t cell = p.cell_row * a.plan.columns + p.cell_column;
      listed = s.count[cell] != 1;
      const int32_t last = s.last[cell];
      if (!listed) write(a, t, p, {0.0f, classes == nullptr ? last : classes[last]});
    }
    const uint32_t all = __ballot_sync(kAllLanes, listed);
    int32_t at = 0;
    if (lane == 0) at = atomicAdd(&s.counters->undecided, __popc(all));
    at = __shfl_sync(kAllLanes, at, 0) + __popc(all & ((1u << lane) - 1));
    if (listed) s.undecided[at] = static_cast<uint16_t>(base + lane);
  }
  __syncthreads();
}

// A walk over the queries at one pixel, with the group's probabilities; in shared memory.
struct SharedQueries {
  static constexpr int kUnroll = 2;
  const float* corner;
  const float* staged;
  int32_t corners, row, padded;
  float down, right;

  __device__ float logit() const { return sample(corner, row, down, right); }
  __device__ void probs(int32_t j, float (&p)[kSums]) const { load_floats(staged + j, p); }
  __device__ void next() {
    corner += corners;
    staged += padded;
  }
};

// The same in global memory.
template <typename Item>
struct GlobalQueries {
  static constexpr int kUnroll = 1;
  const Item* grid;
  const float* of_query;
  const int32_t* listed;
  CellOffsets cell;
  int64_t area, stride;
  int32_t count;
  float down, right;

  __device__ float logit() const { return sample(load_corners(grid, cell), down, right); }
  __device__ void probs(int32_t j, float (&p)[kSums]) const {
#pragma unroll
    for (int c = 0; c < kSums; ++c) p[c] = of_query[listed[min(j + c, count - 1)]];
  }
  __device__ void next() {
    grid += area;
    of_query += stride;
  }
};

// Probabilities sampled, then summed.
template <typename Queries>
__device__ void score_from_queries(const Queries& first, const Shared& s, int32_t queries,
                                   Best& best) {
  const int32_t listed = s.counters->listed;
  for (int32_t j = 0; j < listed; j += kSums) {
    float sum[kSums] = {}, probs[kSums];
    Queries at = first;
#pragma unroll Queries::kUnroll
    for (int32_t q = 0; q < queries; ++q, at.next()) {
      const float p = probability(at.logit());
      at.probs(j, probs);
#pragma unroll
      for (int c = 0; c < kSums; ++c) sum[c] = fmaf(probs[c], p, sum[c]);
    }
#pragma unroll
    for (int c = 0; c < kSums; ++c) {
      if (j + c < listed) best.compete(sum[c], s.listed[j + c]);
    }
  }
}

template <typename Item>
__device__ void score_from_global(const Arguments& a, const Tile& t, const Shared& s,
                                  const Pixel& p, float down, float right, Best& best) {
  const int64_t area = a.shape.rows * a.shape.columns, stride = a.probs.classes + 1;
  const int32_t row = t.row + p.cell_row, column = t.column + p.cell_column;
  const CellOffsets cell{row * a.shape.columns + column, row < t.last_row ? a.shape.columns : 0,
                         column < t.last_column ? 1 : 0};
  const GlobalQueries<Item> from{
      static_cast<const Item*>(a.logits.data) + t.image * a.shape.queries * area,
      a.probs.all + t.image * a.shape.queries * stride,
      s.listed,
      cell,
      area,
      stride,
      s.counters->listed,
      down,
      right};
  score_from_queries(from, s, static_cast<int32_t>(a.shape.queries), best);
}

// Scores the group at one pixel. `chosen`: places of its classes, or null for all.
template <Method Way>
__device__ void score_pixel(const Arguments& a, const Tile& t, const Shared& s, const Pixel& p,
                            const int32_t* chosen, Best& best) {
  const float down = a.axes.rows.weight_at(t.image, p.y);
  const float right = a.axes.columns.weight_at(t.image, p.x);
  const int32_t row = a.plan.corner_row(), corner = p.cell_row * row + p.cell_column;
  if constexpr (Way == Method::corners) {
    const int32_t count = chosen == nullptr ? s.counters->listed : s.counters->chosen;
    for (int32_t i = 0; i < count; ++i) {
      const int32_t j = chosen == nullptr ? i : chosen[i];
      best.compete(sample(s.score + j * a.plan.corners + corner, row, down, right), s.listed[j]);
    }
  } else if constexpr (Way == Method::pixels) {
    const SharedQueries from{s.value + corner, s.staged, a.plan.corners, row,
                             padded_group(s),  down,     right};
    score_from_queries(from, s, static_cast<int32_t>(a.shape.queries), best);
  } else if (a.logits.type == FloatType::float32) {
    score_from_global<float>(a, t, s, p, down, right, best);
  } else if (a.logits.type == FloatType::float16) {
    score_from_global<Float16>(a, t, s, p, down, right, best);
  } else {
    score_from_global<BFloat16>(a, t, s, p, down, right, best);
  }
}

}  // namespace
}  // namespace maskformer::cuda
