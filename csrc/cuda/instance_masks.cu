// instance_masks: single queries' masks at full size, and what is to be known of them.
//   in      mask logits [B, Q, h, w]   wanted [B, Q]   query [N] in [0, B * Q)   region [B, 2] or
//   null out     statistics: mean [B, Q] of the probability inside the mask   boxes [B, Q, 4] x0 y0
//   x1 y1
//           masks: [N, H, W] bytes, 1 where the sampled logit is > 0
//   maths   sampling keeps the sign of a cell's corners, exactly: cells without a positive corner
//           are outside, cells without another one inside; only pixels inside need a sigmoid
//   plan    statistics: tables of both axes; a block per query and 32 x 256 pixels, a thread per
//           column, gives a partial sum; a warp per query adds those up. Masks, when their order is
//           known: 16 neighbouring bytes a thread, whatever row or mask they are in, one store
//   ties    sums in fixed trees, boxes in integers: the same bits on every run

#include "cuda/instance_masks.hpp"
#include "cuda/launch.cuh"
#include "cuda/map_axes.cuh"

namespace maskformer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBandRows = 32;  // pixels of a column that a thread adds up
constexpr int kBytes = 16;     // of the masks that a thread writes
constexpr int kMostColumns =
    7;  // of corners around these bytes that are worth a look at their sign

// Of a query's pixels inside its mask.
struct Partial {
  float total;  // of the probabilities
  int32_t area;
  int32_t left, top, right, bottom;  // nothing inside: left > right
};

constexpr int32_t kFar = 0x7fffffff;

struct Workspace {
  MapAxes axes;
  Partial* partials;  // [B, Q, down, across]
};

int64_t tiles_across(const MapShape& shape) { return ceil_div(shape.width, kThreads); }

int64_t tiles_of(const MapShape& shape) {
  return ceil_div(shape.height, kBandRows) * tiles_across(shape);
}

Workspace lay_out(Arena& arena, const MapShape& shape) {
  const MapAxes axes = lay_out_axes(arena, shape);
  return {axes, arena.take<Partial>(shape.images * shape.queries * tiles_of(shape))};
}

__global__ void __launch_bounds__(kThreads)
    make_axes(const MapAxes axes, const double* region, const MapShape shape) {
  const int64_t index = int64_t{1} * blockIdx.x * kThreads + threadIdx.x;
  if (index < axis_outputs(shape)) fill_axes(axes, region, shape, index);
}

// Where cell (row, column) of an image's grid has its corners.
__device__ CellOffsets cell_at(const MapAxes& axes, int64_t image, int32_t row, int32_t column) {
  const int64_t grid_columns = axes.columns.cells;
  return {row * grid_columns + column, row < axes.rows.last[image] ? grid_columns : 0,
          column < axes.columns.last[image] ? 1 : 0};
}

// The pixels [top, bottom) of column x.
template <typename Item>
__device__ Partial add_column(const MapAxes& axes, int64_t image, const Item* grid, int32_t x,
                              int32_t top, int32_t bottom) {
  Partial sum{0.0f, 0, kFar, kFar, 0, 0};
  const int32_t column = axes.columns.low_at(image, x);
  const float right = axes.columns.weight_at(image, x);
  for (int32_t y = top, end; y < bottom; y = end) {
    const int32_t row = axes.rows.low_at(image, y);
    end = min(bottom, axes.rows.first_in(image, row + 1));
    const Corners corners = load_corners(grid, cell_at(axes, image, row, column));
    if (!(most(corners) > 0.0f) && !is_wild(corners)) continue;
    for (int32_t i = y; i < end; ++i) {
      const float logit = sample(corners, axes.rows.weight_at(image, i), right);
      if (!(logit > 0.0f)) continue;
      sum.total += probability(logit);
      ++sum.area;
      sum.top = min(sum.top, i);
      sum.bottom = i + 1;
    }
  }
  if (sum.area > 0) {
    sum.left = x;
    sum.right = x + 1;
  }
  return sum;
}

// The whole of two parts.
__device__ Partial joined(const Partial& a, const Partial& b) {
  return {a.total + b.total, a.area + b.area,       min(a.left, b.left),
          min(a.top, b.top), max(a.right, b.right), max(a.bottom, b.bottom)};
}

__device__ Partial of_lane(const Partial& p, int lanes) {
  return {__shfl_xor_sync(kAllLanes, p.total, lanes), __shfl_xor_sync(kAllLanes, p.area, lanes),
          __shfl_xor_sync(kAllLanes, p.left, lanes),  __shfl_xor_sync(kAllLanes, p.top, lanes),
          __shfl_xor_sync(kAllLanes, p.right, lanes), __shfl_xor_sync(kAllLanes, p.bottom, lanes)};
}

// One query and one tile of the map.
template <typename Item>
__global__ void __launch_bounds__(kThreads)
    add_tiles(const MapAxes axes, const Item* logits, const uint8_t* wanted, Partial* partials,
              const MapShape shape, int32_t across, int32_t tiles) {
  __shared__ Partial of_warp[kWarps];
  const int64_t query = blockIdx.x / tiles;
  const int32_t tile = static_cast<int32_t>(blockIdx.x % tiles), lane = threadIdx.x % kWarp;
  if (!wanted[query]) return;
  const int32_t x = tile % across * kThreads + static_cast<int32_t>(threadIdx.x);
  const int32_t top = tile / across * kBandRows;
  const int32_t height = static_cast<int32_t>(shape.height);
  Partial sum{0.0f, 0, kFar, kFar, 0, 0};
  if (x < shape.width) {
    sum = add_column(axes, query / shape.queries, logits + query * shape.rows * shape.columns, x,
                     top, min(top + kBandRows, height));
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum = joined(sum, of_lane(sum, lanes));
  if (lane == 0) of_warp[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int warp = 1; warp < kWarps; ++warp) sum = joined(sum, of_warp[warp]);
  partials[blockIdx.x] = sum;
}

// One warp per query.
__global__ void __launch_bounds__(kThreads)
    add_partials(const Partial* partials, const uint8_t* wanted, int64_t queries, int32_t tiles,
                 float* mean, int32_t* boxes) {
  const int64_t query = int64_t{1} * blockIdx.x * kWarps + threadIdx.x / kWarp;
  const int32_t lane = threadIdx.x % kWarp;
  if (query >= queries || !wanted[query]) return;
  Partial sum{0.0f, 0, kFar, kFar, 0, 0};
  double total = 0.0;
  int64_t area = 0;
  for (int32_t tile = lane; tile < tiles; tile += kWarp) {
    const Partial part = partials[query * tiles + tile];
    total += part.total;
    area += part.area;
    sum = joined(sum, part);
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    total += __shfl_xor_sync(kAllLanes, total, lanes);
    area += __shfl_xor_sync(kAllLanes, static_cast<long long>(area), lanes);
    sum = joined(sum, of_lane(sum, lanes));
  }
  if (lane > 0) return;
  const bool empty = area == 0;
  mean[query] = empty ? 0.0f : static_cast<float>(total / static_cast<double>(area));
  boxes[4 * query] = empty ? 0 : sum.left;
  boxes[4 * query + 1] = empty ? 0 : sum.top;
  boxes[4 * query + 2] = sum.right;
  boxes[4 * query + 3] = sum.bottom;
}

// A place in the masks.
struct Place {
  int64_t mask;
  int32_t y, x;
};

__device__ Place place_of(int64_t byte, const MapShape& shape) {
  const int64_t area = shape.height * shape.width, rest = byte % area;
  return {byte / area, static_cast<int32_t>(rest / shape.width),
          static_cast<int32_t>(rest % shape.width)};
}

// `bytes` further, at most a few thousand.
__device__ Place further(Place p, uint32_t bytes, const MapShape& shape) {
  const uint32_t width = static_cast<uint32_t>(shape.width), x = p.x + bytes;
  p.x = static_cast<int32_t>(x % width);
  const int64_t y = p.y + int64_t{x / width};
  p.y = static_cast<int32_t>(y);
  if (y >= shape.height) {
    p.mask += y / shape.height;
    p.y = static_cast<int32_t>(y % shape.height);
  }
  return p;
}

// One row of pixels of one mask.
template <typename Item>
struct Row {
  const MapAxes& axes;
  int64_t image;
  const Item *upper, *lower;  // rows of the grid
  float down;
  int32_t last;  // column of the grid

  __device__ float between(int32_t column) const {
    const int32_t c = min(column, last);
    return lerp(to_float(upper[c]), to_float(lower[c]), down);
  }
};

template <typename Item>
__device__ Row<Item> row_of(const MapAxes& axes, const Item* logits, int64_t query, int32_t y,
                            const MapShape& shape) {
  const int64_t image = query / shape.queries;
  const int32_t low = axes.rows.low_at(image, y);
  const Item* upper = logits + (query * shape.rows + low) * shape.columns;
  return {axes,
          image,
          upper,
          upper + (low < axes.rows.last[image] ? shape.columns : 0),
          axes.rows.weight_at(image, y),
          axes.columns.last[image]};
}

enum class Cells { outside, inside, mixed };

// What the pixels [x, x + kBytes) are, by their corners.
template <typename Item>
__device__ Cells cells_of(const Row<Item>& row, int32_t x) {
  const int32_t first = row.axes.columns.low_at(row.image, x);
  const int32_t end = min(row.axes.columns.low_at(row.image, x + kBytes - 1) + 1, row.last);
  if (end - first >= kMostColumns) return Cells::mixed;
  bool inside = true, outside = true, tame = true;
  for (int32_t column = first; column <= end; ++column) {
    const float a = to_float(row.upper[column]), b = to_float(row.lower[column]);
    inside = inside && a > 0.0f && b > 0.0f;
    outside = outside && a <= 0.0f && b <= 0.0f;
    tame = tame && fabsf(a) < kWild && fabsf(b) < kWild;
  }
  return !tame ? Cells::mixed : inside ? Cells::inside : outside ? Cells::outside : Cells::mixed;
}

// Sets byte i of `bytes` where pixel (p.x + i) is inside, for `count` pixels of one row.
template <typename Item>
__device__ void sample_row(const Row<Item>& row, int32_t x, int32_t first, int32_t count,
                           uint32_t (&bytes)[kBytes / 4]) {
  int32_t held = -2;
  float left = 0.0f, right = 0.0f;
#pragma unroll
  for (int32_t i = 0; i < kBytes; ++i) {
    if (i < first || i >= first + count) continue;
    const int32_t column = row.axes.columns.low_at(row.image, x + i - first);
    if (column != held) {
      left = column == held + 1 ? right : row.between(column);
      right = row.between(column + 1);
      held = column;
    }
    const float logit = lerp(left, right, row.axes.columns.weight_at(row.image, x + i - first));
    bytes[i / 4] |= (logit > 0.0f ? 1u : 0u) << i % 4 * 8;
  }
}

// [count, H, W] bytes, flat.
template <typename Item>
__global__ void __launch_bounds__(kThreads)
    write_masks(const MapAxes axes, const Item* logits, const int64_t* query, int64_t count,
                uint8_t* masks, const MapShape shape) {
  __shared__ Place start;
  const int64_t block = int64_t{1} * blockIdx.x * kThreads * kBytes;
  if (threadIdx.x == 0) start = place_of(block, shape);
  __syncthreads();
  const int64_t all = count * shape.height * shape.width, byte = block + threadIdx.x * kBytes;
  if (byte >= all) return;
  const int32_t mine = static_cast<int32_t>(min(all - byte, static_cast<int64_t>(kBytes)));
  Place p = further(start, threadIdx.x * kBytes, shape);
  uint32_t bytes[kBytes / 4] = {};
  for (int32_t done = 0, part; done < mine; done += part) {
    const int64_t named = min(max(query[p.mask], int64_t{0}), shape.images * shape.queries - 1);
    const Row<Item> row = row_of(axes, logits, named, p.y, shape);
    part = static_cast<int32_t>(min(static_cast<int64_t>(mine - done), shape.width - p.x));
    const Cells cells = part == kBytes ? cells_of(row, p.x) : Cells::mixed;
    if (cells == Cells::mixed) sample_row(row, p.x, done, part, bytes);
    if (cells == Cells::inside) {
      for (uint32_t& word : bytes) word = 0x01010101u;
    }
    p = further(p, part, shape);
  }
  if (mine == kBytes) {
    *reinterpret_cast<uint4*>(masks + byte) = make_uint4(bytes[0], bytes[1], bytes[2], bytes[3]);
    return;
  }
#pragma unroll
  for (int32_t i = 0; i < kBytes; ++i) {
    if (i < mine) masks[byte + i] = static_cast<uint8_t>(bytes[i / 4] >> i % 4 * 8);
  }
}

template <typename Item>
void add_all_tiles(const MaskLogits& logits, const uint8_t* wanted, const MapShape& shape,
                   const Workspace& w, Stream stream) {
  launch("instance_masks: statistics", add_tiles<Item>,
         blocks(shape.images * shape.queries * tiles_of(shape)), kThreads, 0, stream, w.axes,
         static_cast<const Item*>(logits.data), wanted, w.partials, shape,
         static_cast<int32_t>(tiles_across(shape)), static_cast<int32_t>(tiles_of(shape)));
}

template <typename Item>
void write_all_masks(const MaskLogits& logits, const int64_t* query, int64_t count, uint8_t* masks,
                     const MapShape& shape, const Workspace& w, Stream stream) {
  const int64_t bytes = count * shape.height * shape.width;
  launch("instance_masks", write_masks<Item>, blocks(ceil_div(bytes, kThreads * kBytes)), kThreads,
         0, stream, w.axes, static_cast<const Item*>(logits.data), query, count, masks, shape);
}

}  // namespace

int64_t instance_masks_workspace(const MapShape& shape) {
  Arena arena(nullptr);
  lay_out(arena, shape);
  return arena.used();
}

void instance_statistics(const MaskLogits& logits, const uint8_t* wanted, float* mean,
                         int32_t* boxes, const MapShape& shape, std::byte* workspace,
                         Stream stream) {
  Arena arena(workspace);
  const Workspace w = lay_out(arena, shape);
  const int64_t queries = shape.images * shape.queries, tiles = tiles_of(shape);
  launch("instance_masks: axes", make_axes, blocks(ceil_div(axis_outputs(shape), kThreads)),
         kThreads, 0, stream, w.axes, logits.region, shape);
  switch (logits.type) {
    case FloatType::float32:
      add_all_tiles<float>(logits, wanted, shape, w, stream);
      break;
    case FloatType::float16:
      add_all_tiles<Float16>(logits, wanted, shape, w, stream);
      break;
    case FloatType::bfloat16:
      add_all_tiles<BFloat16>(logits, wanted, shape, w, stream);
  }
  launch("instance_masks: sums", add_partials, blocks(ceil_div(queries, kWarps)), kThreads, 0,
         stream, w.partials, wanted, queries, static_cast<int32_t>(tiles), mean, boxes);
}

void instance_masks(const MaskLogits& logits, const int64_t* query, int64_t count, uint8_t* masks,
                    const MapShape& shape, std::byte* workspace, Stream stream) {
  Arena arena(workspace);
  const Workspace w = lay_out(arena, shape);
  switch (logits.type) {
    case FloatType::float32:
      return write_all_masks<float>(logits, query, count, masks, shape, w, stream);
    case FloatType::float16:
      return write_all_masks<Float16>(logits, query, count, masks, shape, w, stream);
    case FloatType::bfloat16:
      return write_all_masks<BFloat16>(logits, query, count, masks, shape, w, stream);
  }
}

}  // namespace maskformer::cuda
