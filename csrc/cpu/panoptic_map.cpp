// panoptic_map: queries compete for pixels; what they win becomes segments.
//   in      mask logits [B, Q, h, w]   score, label [B, Q]   region [B, 2]
//   out     segments [B, H, W]   segment_of_query, area [B, Q]
//   maths   the winner of a pixel has the greatest score * prob among the kept queries; prob is
//           sigmoid(sample(x)), in dialect "transformers" sample(sigmoid(x)). Rules:
//           core/panoptic.hpp
//   bounds  score * (least, greatest corner). A cell with one candidate is filled; a query all of
//           whose corners are inside its mask, or outside, is counted without its pixels
//   plan    one pass writes winners into `segments` and counts, one replaces them by ids. Counters
//           are integers, one set for each thread
//   ties    the lowest query; the same result whatever the number of threads

#include "cpu/panoptic_map.hpp"

#include "cpu/map_bounds.hpp"
#include "cpu/parallel.hpp"

namespace maskformer::cpu {
namespace {

constexpr int32_t kVoid = -1;      // a pixel that its winner does not write
constexpr int64_t kPassRows = 64;  // of the second pass at a time

// The queries of an image that compete, and what came of it.
struct Image {
  int64_t count;
  int32_t* query;  // [count]
  float* score;    // [count]
  Pixels* pixels;  // [count] of one thread
};

struct Contest {
  MapShape shape;
  PanopticRules rules;
  int32_t* segments;

  Tile tile;
  CellBounds bounds;
  int64_t* inside;       // [Q] pixels of cells that lie inside a query's mask
  int64_t* cell_pixels;  // [kTileCells]
  int32_t* border;       // [kTileCells] queries whose mask ends in the cell
  int32_t* mark;         // [kTileCells] what a decided cell is filled with
  int32_t* visited;      // [Q] queries sampled in a cell
  Image image;
};

// Workspace that all threads share.
struct Shared {
  Axes axes;
  int64_t* count;        // [B] kept queries
  int32_t* query;        // [B, Q]
  float* score;          // [B, Q]
  int32_t* ids;          // [B, Q] segment of a kept query, after the contest
  int32_t* id_of_class;  // [K]
  Pixels* pixels;        // [threads, B, Q]
};

Shared lay_out_shared(Arena& arena, const MapShape& shape, int64_t classes, int threads) {
  const int64_t all = shape.images * shape.queries;
  Shared shared{};
  shared.axes = lay_out_axes(arena, shape);
  shared.count = arena.take<int64_t>(shape.images);
  shared.query = arena.take<int32_t>(all);
  shared.score = arena.take<float>(all);
  shared.ids = arena.take<int32_t>(all);
  shared.id_of_class = arena.take<int32_t>(classes);
  shared.pixels = arena.take<Pixels>(threads * all);
  return shared;
}

Contest lay_out(Arena& arena, const MapShape& shape, bool sigmoid_first) {
  Contest c{};
  c.shape = shape;
  c.tile = lay_out_tile(arena, shape.queries, sigmoid_first);
  c.bounds = lay_out_bounds(arena, shape.queries);
  c.inside = arena.take<int64_t>(shape.queries);
  c.cell_pixels = arena.take<int64_t>(kTileCells);
  c.border = arena.take<int32_t>(kTileCells);
  c.mark = arena.take<int32_t>(kTileCells);
  c.visited = arena.take<int32_t>(shape.queries);
  return c;
}

// A mask's limits for score * prob: a cell is inside from the second on, outside below the first.
struct MaskLimits {
  float outside, inside;
};

MaskLimits mask_limits(const PanopticRules& rules, float score) {
  const float limit =
      rules.dialect == Dialect::transformers ? rules.mask_threshold : rules.mask_threshold * score;
  return {limit * (1.0f - kMargin), limit * (1.0f + kMargin)};
}

// Bounds of score * prob, the pixels that lie inside masks, and where masks end.
void bound(Contest& c) {
  std::fill_n(c.border, kTileCells, 0);
  for (int64_t x = 0; x < kTileCells; ++x) {
    c.cell_pixels[x] = x < c.tile.cells ? c.tile.pixels(x, x + 1).pixels() : 0;
  }
  const int64_t* __restrict pixels = c.cell_pixels;
  int32_t* __restrict border = c.border;
  for (int64_t n = 0; n < c.image.count; ++n) {
    float* __restrict least = c.bounds.least + n * kTileCells;
    float* __restrict most = c.bounds.most + n * kTileCells;
    probability_bounds(c.tile, n, least, most);
    const float score = c.image.score[n];
    const MaskLimits limits = mask_limits(c.rules, score);
    int64_t inside = 0;
    for (int64_t x = 0; x < kTileCells; ++x) {
      least[x] *= score;
      most[x] *= score;
      const bool is_inside = least[x] >= limits.inside;
      inside += is_inside ? pixels[x] : 0;
      border[x] += !is_inside && most[x] >= limits.outside ? 1 : 0;
    }
    c.inside[n] = inside;
  }
}

bool is_border(const Contest& c, int64_t n, int64_t x) {
  const MaskLimits limits = mask_limits(c.rules, c.image.score[n]);
  return c.bounds.least[n * kTileCells + x] < limits.inside &&
         c.bounds.most[n * kTileCells + x] >= limits.outside;
}

// Lets the queries in c.visited compete for the pixels of an area, and counts their masks there.
// competes(n), counts(n): whether query n does so.
template <bool OneCell, typename Competes, typename Counts>
void compete(Contest& c, const Rectangle& area, int64_t count, const Competes& competes,
             const Counts& counts) {
  const int64_t image = c.tile.image * c.shape.height * c.shape.width;
  for_blocks(c.tile, area, c.shape.width, [&](const Block& block) {
    float best[kBlock];
    int32_t winner[kBlock] = {}, written[kBlock] = {};
    std::fill_n(best, kBlock, -1.0f);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t n = c.visited[i];
      const float score = c.image.score[n];
      float prob[kBlock];
      int32_t own[kBlock], owned = 0;
      sample_probability<OneCell>(c.tile, block, n, prob);
      for (int lane = 0; lane < kBlock; ++lane) {
        own[lane] = in_mask(score, prob[lane], c.rules) ? 1 : 0;
        owned += lane < block.count ? own[lane] : 0;
      }
      if (counts(n)) c.image.pixels[n].original += owned;
      if (!competes(n)) continue;
      for (int lane = 0; lane < kBlock; ++lane) {
        const bool better = score * prob[lane] > best[lane];
        best[lane] = better ? score * prob[lane] : best[lane];
        winner[lane] = better ? n : winner[lane];
        written[lane] = better ? own[lane] : written[lane];
      }
    }
    for (int lane = 0; lane < block.count; ++lane) {
      const bool writes = c.rules.dialect != Dialect::mask2former || written[lane];
      c.segments[image + block.pixel[lane]] = writes ? winner[lane] : kVoid;
      c.image.pixels[winner[lane]].won += 1;
      c.image.pixels[winner[lane]].written += writes ? 1 : 0;
    }
  });
}

void compete_everywhere(Contest& c) {
  const auto always = [](int64_t) { return true; };
  for (int64_t n = 0; n < c.image.count; ++n) c.visited[n] = static_cast<int32_t>(n);
  compete<false>(c, c.tile.pixels(0, c.tile.cells), c.image.count, always, always);
}

bool is_decided(const Contest& c, int64_t x) { return c.bounds.count[x] == 1 && c.border[x] == 0; }

void fill_decided(Contest& c) {
  for (int64_t n = 0; n < c.image.count; ++n) c.image.pixels[n].original += c.inside[n];
  for (int64_t x = 0; x < c.tile.cells; ++x) {
    const int32_t n = c.mark[x] = c.bounds.last[x];
    if (!is_decided(c, x)) continue;
    const bool writes =
        c.rules.dialect != Dialect::mask2former ||
        c.bounds.least[n * kTileCells + x] >= mask_limits(c.rules, c.image.score[n]).inside;
    c.mark[x] = writes ? n : kVoid;
    c.image.pixels[n].won += c.cell_pixels[x];
    c.image.pixels[n].written += writes ? c.cell_pixels[x] : 0;
  }
  fill_cells(c.tile, c.mark, c.shape, c.segments);
}

void contest_tile(Contest& c) {
  const Tile& tile = c.tile;
  if (!tile.bounded) return compete_everywhere(c);
  bound(c);
  find_candidates(c.bounds);
  int64_t work = 0;
  for (int64_t x = 0; x < tile.cells; ++x) {
    if (is_decided(c, x)) continue;
    work += blocks_of(tile.pixels(x, x + 1)) * (1 + c.bounds.count[x] + c.border[x]);
  }
  if (work > blocks_of(tile.pixels(0, tile.cells)) * (1 + 2 * c.image.count)) {
    return compete_everywhere(c);
  }
  fill_decided(c);
  for (int64_t x = 0; x < tile.cells; ++x) {
    if (is_decided(c, x)) continue;
    int64_t count = 0;
    for (int64_t n = 0; n < c.image.count; ++n) {
      c.visited[count] = static_cast<int32_t>(n);
      count += c.bounds.is_candidate(n, x) || is_border(c, n, x) ? 1 : 0;
    }
    compete<true>(
        c, tile.pixels(x, x + 1), count, [&](int64_t n) { return c.bounds.is_candidate(n, x); },
        [&](int64_t n) { return is_border(c, n, x); });
  }
}

void list_kept(const Shared& shared, const ClassifiedQueries& queries, const PanopticRules& rules,
               const MapShape& shape) {
  for (int64_t b = 0; b < shape.images; ++b) {
    int64_t kept = 0;
    for (int64_t q = 0; q < shape.queries; ++q) {
      const int64_t at = b * shape.queries + q;
      if (!is_kept(queries.score[at], queries.label[at], queries.classes, rules)) continue;
      shared.query[b * shape.queries + kept] = static_cast<int32_t>(q);
      shared.score[b * shape.queries + kept++] = queries.score[at];
    }
    shared.count[b] = kept;
  }
}

// The segments of one image, from what its queries won.
void conclude(const Shared& shared, const ClassifiedQueries& queries, const PanopticRules& rules,
              const PanopticOutput& output, const MapShape& shape, int64_t image, int threads) {
  const int64_t first = image * shape.queries;
  std::fill_n(output.segment_of_query + first, shape.queries, 0);
  std::fill_n(output.area + first, shape.queries, 0);
  for (int64_t n = 0; n < shared.count[image]; ++n) {
    Pixels sum{};
    for (int64_t t = 0; t < threads; ++t) {
      const Pixels& part = shared.pixels[t * shape.images * shape.queries + first + n];
      sum = {sum.won + part.won, sum.written + part.written, sum.original + part.original};
    }
    if (!survives(sum, rules)) continue;
    output.segment_of_query[first + shared.query[first + n]] = 1;
    output.area[first + shared.query[first + n]] = static_cast<int32_t>(sum.written);
  }
  number_segments(queries.label + first, queries.is_thing, shape.queries, queries.classes,
                  shared.id_of_class, output.segment_of_query + first);
  for (int64_t n = 0; n < shared.count[image]; ++n) {
    shared.ids[first + n] = output.segment_of_query[first + shared.query[first + n]];
  }
}

// Winners to ids, in place. Without kept queries nothing was written.
void write_ids(const Shared& shared, const MapShape& shape, int32_t* segments, int64_t image,
               int64_t first_row) {
  const int64_t rows = std::min(kPassRows, shape.height - first_row);
  int32_t* map = segments + (image * shape.height + first_row) * shape.width;
  const int32_t* ids = shared.ids + image * shape.queries;
  const bool none = shared.count[image] == 0;
  for (int64_t i = 0; i < rows * shape.width; ++i) {
    map[i] = none || map[i] == kVoid ? 0 : ids[map[i]];
  }
}

}  // namespace

template <InstructionSet Set>
int64_t panoptic_map_workspace(const MapShape& shape, int64_t classes, bool sigmoid_first,
                               int threads) {
  Arena shared(nullptr), own(nullptr);
  lay_out_shared(shared, shape, classes, threads);
  lay_out(own, shape, sigmoid_first);
  return shared.used() + threads * own.used();
}

template <InstructionSet Set>
void panoptic_map(const MaskLogits& logits, const ClassifiedQueries& queries,
                  const PanopticRules& rules, const PanopticOutput& output, const MapShape& shape,
                  std::byte* workspace, int threads) {
  const bool sigmoid_first = rules.dialect == Dialect::transformers;
  const int64_t all = shape.images * shape.queries;
  Arena own(nullptr), arena(workspace);
  lay_out(own, shape, sigmoid_first);
  const Shared shared = lay_out_shared(arena, shape, queries.classes, threads);
  std::fill_n(shared.pixels, threads * all, Pixels{});
  list_kept(shared, queries, rules, shape);
  fill_axes(shared.axes, logits, shape);
  const int64_t strips = strips_of_image(shape);
  parallel_for(shape.images * strips, threads, [&](int64_t index, int thread) {
    const int64_t image = index / strips, first = image * shape.queries;
    if (shared.count[image] == 0) return;
    Arena share(workspace + arena.used() + thread * own.used());
    Contest c = lay_out(share, shape, sigmoid_first);
    c.rules = rules;
    c.segments = output.segments;
    c.image = {shared.count[image], shared.query + first, shared.score + first,
               shared.pixels + thread * all + first};
    c.tile.queries = c.image.query;
    c.tile.num_queries = c.bounds.contenders = c.image.count;
    c.tile.bounded = pays_to_bound(shape);
    walk(c.tile, image, index % strips, shared.axes, logits, shape,
         [&](const Tile&) { contest_tile(c); });
  });
  for (int64_t image = 0; image < shape.images; ++image) {
    conclude(shared, queries, rules, output, shape, image, threads);
  }
  const int64_t passes = (shape.height + kPassRows - 1) / kPassRows;
  parallel_for(shape.images * passes, threads, [&](int64_t index, int) {
    write_ids(shared, shape, output.segments, index / passes, index % passes * kPassRows);
  });
}

template int64_t panoptic_map_workspace<InstructionSet::MASKFORMER_SET>(const MapShape&, int64_t,
                                                                        bool, int);
template void panoptic_map<InstructionSet::MASKFORMER_SET>(const MaskLogits&,
                                                           const ClassifiedQueries&,
                                                           const PanopticRules&,
                                                           const PanopticOutput&, const MapShape&,
                                                           std::byte*, int);

}  // namespace maskformer::cpu
