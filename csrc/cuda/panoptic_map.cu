// panoptic_map: queries compete for pixels; what they win becomes segments.
//   in      class logits [B, Q, K+1]   mask logits [B, Q, h, w]   region [B, 2] or none
//   out     segments [B, H, W]   segment_of_query, area, score, label [B, Q]
//   maths   score, label = max of softmax; the winner of a pixel has the greatest score * prob
//   among
//           the kept queries; prob is sigmoid(sample(x)), in dialect "transformers"
//           sample(sigmoid(x)). Rules: core/panoptic.hpp
//   bounds  score * sigmoid of the least and greatest corner of a grid cell. A cell with one
//           candidate is filled; a query that is inside its mask at all corners, or outside, is
//           counted without its pixels. Margin: core/map_shape.hpp
//   plan    list_kept  a block for each image: scores, labels, the queries that compete
//           contest    a block for each tile of 24 x 128 pixels: bounds of the cells under it, one
//                      thread each; then four pixels of a column a thread. Winners go to
//                      `segments`, counts to shared memory and from there to global memory
//           conclude   a block for each image: who survives, and the segments' ids
//           write_ids  winners to ids, in place, 16 bytes at a time
//           Nothing is read by the host: launches depend on shapes only
//   ties    the lowest query: each thread meets them in order. Counters are integers, so that the
//           order of blocks does not show
//   limits  K <= 16384. Grids of 2^31 cells along an axis; offsets are 64 bits

#include "core/arena.hpp"
#include "cuda/launch.cuh"
#include "cuda/panoptic_contest.cuh"
#include "cuda/panoptic_map.hpp"

namespace maskformer::cuda {
namespace {

constexpr int kIdThreads = 256;
constexpr int kIdVectors = 4;  // of 16 bytes, for each thread
constexpr int64_t kIdPixels = int64_t{4} * kIdVectors * kIdThreads;

PanopticState lay_out(Arena& arena, int64_t images, int64_t queries, int64_t classes) {
  const int64_t all = images * queries;
  PanopticState state{};
  state.kept_count = arena.take<int32_t>(images);
  state.kept = arena.take<Contender>(all);
  state.pixels.won = arena.take<unsigned long long>(all);
  state.pixels.written = arena.take<unsigned long long>(all);
  state.pixels.original = arena.take<unsigned long long>(all);
  state.first_of_class = arena.take<int32_t>(images * classes);
  return state;
}

__device__ __forceinline__ int32_t id_of(const int32_t* ids, int32_t winner) {
  return winner < 0 ? 0 : __ldg(&ids[winner]);
}

// A block's share of one image. Vectors begin where the image is aligned to 16 bytes; the pixels
// before and behind are done by the first block.
__global__ void __launch_bounds__(kIdThreads)
    write_ids(int32_t* segments, const int32_t* segment_of_query, int64_t queries, int64_t pixels,
              int64_t blocks_of_image) {
  const int64_t image = blockIdx.x / blocks_of_image, block = blockIdx.x % blocks_of_image;
  const int32_t* ids = segment_of_query + image * queries;
  int32_t* map = segments + image * pixels;
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(map) / 4 % 4);
  const int64_t head = min((4 - misaligned) % 4, pixels), vectors = (pixels - head) / 4;
  int4* aligned = reinterpret_cast<int4*>(map + head);
  const int64_t first = block * kIdVectors * kIdThreads + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kIdVectors; ++i) {
    const int64_t v = first + i * kIdThreads;
    if (v >= vectors) break;
    const int4 winner = aligned[v];
    aligned[v] = make_int4(id_of(ids, winner.x), id_of(ids, winner.y), id_of(ids, winner.z),
                           id_of(ids, winner.w));
  }
  const int64_t tail = pixels - head - 4 * vectors, t = threadIdx.x;
  if (block != 0 || t >= head + tail) return;
  int32_t& pixel = map[t < head ? t : t + 4 * vectors];
  pixel = id_of(ids, pixel);
}

template <typename Item>
void launch_contest(const Contest& c, Stream stream) {
  const int64_t tiles =
      c.shape.images * ceil_div(c.shape.height, kTileRows) * ceil_div(c.shape.width, kTileColumns);
  const auto kernel =
      c.rules.dialect == Dialect::transformers ? contest<true, Item> : contest<false, Item>;
  launch("panoptic_map: contest", kernel, blocks(tiles), kTileThreads, shared_bytes(c), stream, c);
}

// Bounds are for tiles whose bits fit beside those of other blocks.
Contest plan_contest(const MaskLogits& logits, const PanopticRules& rules, int32_t* segments,
                     const MapShape& shape, const PanopticState& state) {
  Contest c{shape,
            rules,
            logits.region,
            logits.data,
            segments,
            state,
            shape.queries <= kMostSharedCounters,
            0};
  const bool fits_32_bits = shape.rows * shape.columns <= UINT32_MAX;  // as bound_cell() has it
  if (!c.counts_in_shared || !fits_32_bits || !pays_to_bound(shape)) return c;
  const int64_t cells = most_cells(kTileRows, shape.rows, shape.height) *
                        most_cells(kTileColumns, shape.columns, shape.width);
  constexpr int64_t kMostCells = 4096;
  c.most_cells = static_cast<int32_t>(cells < kMostCells ? cells : kMostCells);
  if (cells > kMostCells || shared_bytes(c) > kSharedByDefault) c.most_cells = 0;
  return c;
}

template <typename Item>
void run(const ClassLogits& class_logits, const MaskLogits& mask_logits, const ThingClasses& things,
         const PanopticRules& rules, const PanopticOutput& output, const MapShape& shape,
         const PanopticState& state, Stream stream) {
  const int64_t classes = class_logits.classes, queries = shape.queries;
  const int64_t bits = query_bits(queries) * static_cast<int64_t>(sizeof(uint32_t));
  const int64_t pixels = shape.height * shape.width, parts = ceil_div(pixels, kIdPixels);
  launch("panoptic_map: list_kept", list_kept<Item>, blocks(shape.images), kQueryThreads, bits,
         stream, static_cast<const Item*>(class_logits.data), classes, queries, rules, output,
         state);
  launch_contest<Item>(plan_contest(mask_logits, rules, output.segments, shape, state), stream);
  launch("panoptic_map: conclude", conclude, blocks(shape.images), kQueryThreads, bits, stream,
         things, classes, queries, rules, output, state);
  launch("panoptic_map: write_ids", write_ids, blocks(shape.images * parts), kIdThreads, 0, stream,
         output.segments, output.segment_of_query, queries, pixels, parts);
}

}  // namespace

int64_t panoptic_map_workspace(int64_t images, int64_t queries, int64_t classes) {
  Arena arena(nullptr);
  lay_out(arena, images, queries, classes);
  return arena.used();
}

void panoptic_map(const ClassLogits& class_logits, const MaskLogits& mask_logits,
                  const ThingClasses& things, const PanopticRules& rules,
                  const PanopticOutput& output, const MapShape& shape, std::byte* workspace,
                  Stream stream) {
  Arena arena(workspace);
  const PanopticState state = lay_out(arena, shape.images, shape.queries, class_logits.classes);
  const auto go = [&](auto start) {
    start(class_logits, mask_logits, things, rules, output, shape, state, stream);
  };
  switch (mask_logits.type) {
    case FloatType::float32:
      return go(run<float>);
    case FloatType::float16:
      return go(run<Float16>);
    case FloatType::bfloat16:
      return go(run<BFloat16>);
  }
}

}  // namespace maskformer::cuda
