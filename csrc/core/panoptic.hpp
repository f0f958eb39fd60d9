// panoptic_map: the rules that do not depend on how the pixels are visited.
#pragma once

#include <cstdint>

#include "core/host_device.hpp"

namespace maskformer {

enum class Dialect : int { maskformer, mask2former, transformers };

struct PanopticRules {
  Dialect dialect;
  float score_threshold, mask_threshold, overlap_threshold;
};

// Pixels of one kept query.
struct Pixels {
  int64_t won;
  int64_t written;   // won, and not left void by the dialect
  int64_t original;  // of its own mask
};

// Whether a query competes: label in [0, num_classes], num_classes being "no object".
MASKFORMER_HD bool is_kept(float score, int64_t label, int64_t num_classes,
                           const PanopticRules& rules) {
  return label < num_classes && score > rules.score_threshold;
}

// Whether a pixel belongs to the query's own mask.
MASKFORMER_HD bool in_mask(float score, float prob, const PanopticRules& rules) {
  return (rules.dialect == Dialect::transformers ? score * prob : prob) >= rules.mask_threshold;
}

// Whether a query keeps the pixels that it won.
MASKFORMER_HD bool survives(const Pixels& pixels, const PanopticRules& rules) {
  if (pixels.written == 0 || pixels.original == 0) return false;
  const float ratio = static_cast<float>(pixels.won) / static_cast<float>(pixels.original);
  return rules.dialect == Dialect::transformers ? ratio > rules.overlap_threshold
                                                : ratio >= rules.overlap_threshold;
}

// Numbers the segments of one image: `ids` is not 0 for the queries that survived, and becomes the
// segment of each, from 1, in query order. The pieces of a class that is not a thing share one;
// id_of_class [num_classes] is scratch.
MASKFORMER_HD void number_segments(const int64_t* label, const uint8_t* is_thing, int64_t queries,
                                   int64_t num_classes, int32_t* id_of_class, int32_t* ids) {
  for (int64_t k = 0; k < num_classes; ++k) id_of_class[k] = 0;
  int32_t latest = 0;
  for (int64_t q = 0; q < queries; ++q) {
    if (ids[q] == 0) continue;
    int32_t& shared = id_of_class[label[q]];
    const bool joins = !is_thing[label[q]] && shared != 0;
    ids[q] = joins ? shared : ++latest;
    shared = ids[q];
  }
}

}  // namespace maskformer
