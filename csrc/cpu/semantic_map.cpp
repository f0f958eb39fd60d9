// semantic_map: the class with the greatest score of every pixel.
//   in      mask logits [B, Q, h, w]   class probabilities p [B, K, Q]   region [B, 2]
//   out     labels [B, H, W]   scores [B, H, W] or null
//   maths   sigmoid_first: s = sum_q p_kq sample(sigmoid(x_q)), summed at the grid's corners;
//           else           s = sum_q p_kq sigmoid(sample(x_q)), summed at the pixels
//   bounds  in a cell, sum_q p_kq min_q <= s_k <= sum_q p_kq max_q, over the large p_kq; the
//           others count as 0 below and as their sum above. A class whose upper bound is less
//           than the greatest lower bound wins nowhere in the cell; the rest are candidates
//   plan    a cell with one candidate is filled. Other cells are scored for their candidates, 16
//           pixels at a time; where that would be more work than to score all pixels of the
//           tile for every class that is a candidate in it, the latter
//   ties    the lowest class; the same bits whatever the number of threads

#include "cpu/semantic_map.hpp"

#include "cpu/float_lanes.hpp"
#include "cpu/map_bounds.hpp"
#include "cpu/parallel.hpp"

namespace maskformer::cpu {
namespace {

constexpr int kGroup = 4;            // classes that are summed together
constexpr int64_t kSampleWork = 20;  // of one query at a block, in sums of one class
constexpr int64_t kSumsWork = 8;     // bounds from entries pay below 1 / kSumsWork of all entries

struct Entry {
  int32_t class_id;
  float prob;
};

// One thread's work.
template <typename Label>
struct Scorer {
  MapShape shape;
  ClassProbabilities probs;
  Label* labels;
  float* scores;

  Tile tile;
  int32_t* queries;      // [Q] all of them
  int64_t* first_entry;  // [Q + 1] into `entries`
  Entry* entries;        // [Q * K] the large probabilities, by query
  CellBounds bounds;
  int32_t* candidates;  // [K] of one cell
  float* block_probs;   // [Q, kBlock]
  float* sums;          // [K, 2, kTileStride] scores at the corners (sigmoid_first)
  int64_t* summed;      // [K, 2] the grid rows of `sums`
};

template <typename Label>
Scorer<Label> lay_out(Arena& arena, const MapShape& shape, int64_t classes, bool sigmoid_first) {
  Scorer<Label> s{};
  s.tile = lay_out_tile(arena, shape.queries, sigmoid_first);
  s.queries = arena.take<int32_t>(shape.queries);
  s.first_entry = arena.take<int64_t>(shape.queries + 1);
  s.entries = arena.take<Entry>(shape.queries * classes);
  s.bounds = lay_out_bounds(arena, classes);
  s.candidates = arena.take<int32_t>(classes);
  s.block_probs = arena.take<float>(sigmoid_first ? 0 : shape.queries * kBlock);
  s.sums = arena.take<float>(sigmoid_first ? classes * 2 * kTileStride : 0);
  s.summed = arena.take<int64_t>(sigmoid_first ? classes * 2 : 0);
  return s;
}

// What holds for all tiles of an image.
template <typename Label>
void prepare(Scorer<Label>& s, int64_t image) {
  const int64_t queries = s.shape.queries, classes = s.probs.classes;
  s.tile.queries = s.queries;
  s.tile.num_queries = queries;
  s.tile.bounded = pays_to_bound(s.shape);
  for (int64_t q = 0; q < queries; ++q) s.queries[q] = static_cast<int32_t>(q);
  all_live(s.bounds);
  if (s.tile.sigmoid_first) std::fill_n(s.summed, 2 * classes, -1);
  const float* large = s.probs.large + image * classes * queries;
  int64_t next = 0;
  for (int64_t q = 0; q < queries; ++q) {
    s.first_entry[q] = next;
    for (int64_t k = 0; k < classes; ++k) {
      const float p = large[k * queries + q];
      if (p > 0.0f) s.entries[next++] = {static_cast<int32_t>(k), p};
    }
  }
  s.first_entry[queries] = next;
}

// The scores of class k at the upper (0) or lower (1) corners of the tile.
template <typename Label>
const float* corner_scores(Scorer<Label>& s, int64_t k, int64_t corner) {
  const int64_t queries = s.shape.queries, slot = s.tile.slot(corner);
  float* __restrict result = s.sums + (2 * k + slot) * kTileStride;
  if (s.summed[2 * k + slot] == s.tile.held[slot]) return result;
  s.summed[2 * k + slot] = s.tile.held[slot];
  const float* p = s.probs.all + (s.tile.image * s.probs.classes + k) * queries;
  Lanes sum[kTileStride / kLanes] = {};
  for (int64_t q = 0; q < queries; ++q) add_scaled(sum, p[q], s.tile.prob_row(q, corner));
  store(sum, result);
  return result;
}

// Bounds of all classes from the queries' bounds.
template <typename Label>
void bound_by_entries(Scorer<Label>& s) {
  const float* others = s.probs.others + s.tile.image * s.probs.classes;
  for (int64_t k = 0; k < s.probs.classes; ++k) {
    std::fill_n(s.bounds.least + k * kTileCells, kTileCells, 0.0f);
    std::fill_n(s.bounds.most + k * kTileCells, kTileCells, others[k]);
  }
  for (int64_t q = 0; q < s.shape.queries; ++q) {
    if (s.first_entry[q] == s.first_entry[q + 1]) continue;
    float least[kTileCells], most[kTileCells];
    probability_bounds(s.tile, q, least, most);
    for (int64_t e = s.first_entry[q]; e < s.first_entry[q + 1]; ++e) {
      const float p = s.entries[e].prob;
      float* __restrict class_least = s.bounds.least + s.entries[e].class_id * kTileCells;
      float* __restrict class_most = s.bounds.most + s.entries[e].class_id * kTileCells;
      for (int64_t x = 0; x < kTileCells; ++x) {
        class_least[x] += p * least[x];
        class_most[x] += p * most[x];
      }
    }
  }
}

// Bounds of all classes from their scores at the corners.
template <typename Label>
void bound_by_corners(Scorer<Label>& s) {
  for (int64_t k = 0; k < s.probs.classes; ++k) {
    corner_bounds(corner_scores(s, k, 0), corner_scores(s, k, 1), s.bounds.least + k * kTileCells,
                  s.bounds.most + k * kTileCells);
  }
}

struct Best {
  float score[kBlock];
  int32_t class_id[kBlock];
};

inline void compete(Best& best, const float* __restrict score, int32_t class_id) {
  for (int lane = 0; lane < kBlock; ++lane) {
    const bool better = score[lane] > best.score[lane];
    best.score[lane] = better ? score[lane] : best.score[lane];
    best.class_id[lane] = better ? class_id : best.class_id[lane];
  }
}

// Scores summed at the corners, then sampled.
template <bool OneCell, typename Label>
void score_from_corners(Scorer<Label>& s, const Block& block, const int32_t* classes, int64_t count,
                        Best& best) {
  for (int64_t c = 0; c < count; ++c) {
    float score[kBlock];
    sample<OneCell>(block, corner_scores(s, classes[c], 0), corner_scores(s, classes[c], 1), score);
    compete(best, score, classes[c]);
  }
}

// Probabilities sampled, then summed.
template <bool OneCell, typename Label>
void score_from_pixels(Scorer<Label>& s, const Block& block, const int32_t* classes, int64_t count,
                       Best& best) {
  const int64_t queries = s.shape.queries;
  for (int64_t q = 0; q < queries; ++q) {
    sample_probability<OneCell>(s.tile, block, q, s.block_probs + q * kBlock);
  }
  const float* p = s.probs.all + s.tile.image * s.probs.classes * queries;
  for (int64_t c = 0; c < count; c += kGroup) {
    const float* row[kGroup];  // the last group repeats the last class
    for (int64_t g = 0; g < kGroup; ++g) {
      row[g] = p + classes[std::min(c + g, count - 1)] * queries;
    }
    Lanes sum[kGroup][1] = {};
    for (int64_t q = 0; q < queries; ++q) {
      for (int64_t g = 0; g < kGroup; ++g)
        add_scaled(sum[g], row[g][q], s.block_probs + q * kBlock);
    }
    for (int64_t g = 0; g < std::min<int64_t>(kGroup, count - c); ++g) {
      float score[kBlock];
      store(sum[g], score);
      compete(best, score, classes[c + g]);
    }
  }
}

template <bool OneCell, typename Label>
void score_pixels(Scorer<Label>& s, const Rectangle& area, const int32_t* classes, int64_t count) {
  const int64_t image = s.tile.image * s.shape.height * s.shape.width;
  for_blocks(s.tile, area, s.shape.width, [&](const Block& block) {
    Best best;
    std::fill_n(best.score, kBlock, -1.0f);
    if (s.tile.sigmoid_first) {
      score_from_corners<OneCell>(s, block, classes, count, best);
    } else {
      score_from_pixels<OneCell>(s, block, classes, count, best);
    }
    for (int lane = 0; lane < block.count; ++lane) {
      s.labels[image + block.pixel[lane]] = static_cast<Label>(best.class_id[lane]);
      if (s.scores) s.scores[image + block.pixel[lane]] = best.score[lane];
    }
  });
}

template <typename Label>
void score_tile(Scorer<Label>& s) {
  const Tile& tile = s.tile;
  CellBounds& bounds = s.bounds;
  const Rectangle all = tile.pixels(0, tile.cells);
  if (!tile.bounded) return score_pixels<false>(s, all, bounds.live, bounds.num_live);
  const bool few = s.first_entry[s.shape.queries] * kSumsWork < s.shape.queries * s.probs.classes;
  few || !tile.sigmoid_first ? bound_by_entries(s) : bound_by_corners(s);
  find_candidates(bounds);
  const int32_t decided = s.scores ? 0 : 1;  // candidates of a cell that need no scores
  int64_t work = 0;
  for (int64_t x = 0; x < tile.cells; ++x) {
    if (bounds.count[x] <= decided) continue;
    work += blocks_of(tile.pixels(x, x + 1)) * (kSampleWork + bounds.count[x]);
  }
  if (work > blocks_of(all) * (2 * kSampleWork + bounds.num_live)) {
    return score_pixels<false>(s, all, bounds.live, bounds.num_live);
  }
  fill_cells(tile, bounds.last, s.shape, s.labels);
  for (int64_t x = 0; x < tile.cells; ++x) {
    if (bounds.count[x] <= decided) continue;
    int64_t count = 0;
    for (int64_t i = 0; i < bounds.num_live; ++i) {
      s.candidates[count] = bounds.live[i];
      count += bounds.is_candidate(bounds.live[i], x) ? 1 : 0;
    }
    score_pixels<true>(s, tile.pixels(x, x + 1), s.candidates, count);
  }
}

}  // namespace

template <InstructionSet Set>
int64_t semantic_map_workspace(const MapShape& shape, int64_t classes, bool sigmoid_first,
                               int threads) {
  Arena shared(nullptr), own(nullptr);
  lay_out_axes(shared, shape);
  lay_out<uint8_t>(own, shape, classes, sigmoid_first);
  return shared.used() + threads * own.used();
}

template <InstructionSet Set, typename Label>
void semantic_map(const MaskLogits& logits, const ClassProbabilities& probs, Label* labels,
                  float* scores, const MapShape& shape, bool sigmoid_first, std::byte* workspace,
                  int threads) {
  Arena shared(workspace), own(nullptr);
  const Axes axes = lay_out_axes(shared, shape);
  fill_axes(axes, logits, shape);
  lay_out<Label>(own, shape, probs.classes, sigmoid_first);
  const int64_t strips = strips_of_image(logits, shape);
  parallel_for(shape.images * strips, threads, [&](int64_t index, int thread) {
    Arena arena(workspace + shared.used() + thread * own.used());
    Scorer<Label> s = lay_out<Label>(arena, shape, probs.classes, sigmoid_first);
    s.shape = shape;
    s.probs = probs;
    s.labels = labels;
    s.scores = scores;
    prepare(s, index / strips);
    walk(s.tile, index / strips, index % strips, axes, logits, shape,
         [&](const Tile&) { score_tile(s); });
  });
}

#define MASKFORMER_SEMANTIC_MAP(Label)                                                     \
  template void semantic_map<InstructionSet::MASKFORMER_SET, Label>(                       \
      const MaskLogits&, const ClassProbabilities&, Label*, float*, const MapShape&, bool, \
      std::byte*, int);

template int64_t semantic_map_workspace<InstructionSet::MASKFORMER_SET>(const MapShape&, int64_t,
                                                                        bool, int);
MASKFORMER_SEMANTIC_MAP(uint8_t)
MASKFORMER_SEMANTIC_MAP(uint16_t)
MASKFORMER_SEMANTIC_MAP(uint32_t)
MASKFORMER_SEMANTIC_MAP(uint64_t)

}  // namespace maskformer::cpu
