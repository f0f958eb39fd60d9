// The Python module maskformer_fast._C. Tensors come as addresses and sizes; the callers in
// maskformer_fast/ops check shapes, dtypes and layout. Here is checked again what a wrong value
// would turn into an access outside the tensors.

#include "bindings.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/instance_masks.hpp"
#include "cpu/instruction_set.hpp"
#include "cpu/linear_assignment.hpp"
#include "cpu/mask_logits.hpp"
#include "cpu/mask_loss.hpp"
#include "cpu/matching_cost.hpp"
#include "cpu/panoptic_map.hpp"
#include "cpu/semantic_map.hpp"

namespace maskformer {
namespace {

struct alignas(64) CacheLine {
  std::byte bytes[64];
};

// Uninitialised memory; throws std::bad_alloc, in Python MemoryError.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : lines_(new CacheLine[(bytes + 63) / 64]) {}
  std::byte* data() { return lines_[0].bytes; }

 private:
  std::unique_ptr<CacheLine[]> lines_;
};

void linear_assignment(uintptr_t cost, bool float64, uintptr_t num_targets,
                       uintptr_t query_of_target, uintptr_t gap, uintptr_t status, int64_t problems,
                       int64_t targets, int64_t queries, int threads) {
  at_least("problems", problems, 0);
  at_least("targets", targets, 0);
  at_least("queries", queries, 1);
  at_least("threads", threads, 1);
  const int32_t* counts = pointer<const int32_t>(num_targets);
  for (int64_t n = 0; n < problems && counts != nullptr; ++n) {
    if (counts[n] < 0 || counts[n] > targets) {
      throw std::invalid_argument("num_targets: expected values in [0, " + std::to_string(targets) +
                                  "], got " + std::to_string(counts[n]));
    }
  }
  const py::gil_scoped_release no_gil;
  const int64_t share = cpu::linear_assignment_workspace(targets, queries);
  const int used = static_cast<int>(std::clamp<int64_t>(problems, 1, threads));
  Workspace workspace(used * cpu::kAssignmentsAtOnce * share);
  const auto run = [&](auto set, const auto* costs) {
    cpu::linear_assignment<set.value>(costs, counts, pointer<int64_t>(query_of_target),
                                      pointer<double>(gap), pointer<int8_t>(status), problems,
                                      targets, queries, workspace.data(), used);
  };
  cpu::dispatch([&](auto set) {
    float64 ? run(set, pointer<const double>(cost)) : run(set, pointer<const float>(cost));
  });
}

void mask_loss(uintptr_t logits, int type, uintptr_t pixels, bool overlapping, uintptr_t occupied,
               uintptr_t valid, uintptr_t focal, uintptr_t dice, uintptr_t slopes,
               const std::array<int64_t, 7>& sizes, float alpha, float gamma, bool ignore_void,
               int threads) {
  for (const int64_t size : sizes) at_least("sizes", size, 1);
  at_least("threads", threads, 1);
  cpu::MaskLoss problem{};
  problem.logits = pointer<const void>(logits);
  problem.type = float_type(type);
  problem.pixels = pointer<const void>(pixels);
  problem.overlapping = overlapping;
  problem.occupied = pointer<const uint8_t>(occupied);
  problem.valid = pointer<const uint8_t>(valid);
  problem.focal = pointer<float>(focal);
  problem.dice = pointer<float>(dice);
  problem.slopes = pointer<float>(slopes);
  std::tie(problem.layers, problem.images, problem.targets, problem.grid_height, problem.grid_width,
           problem.height, problem.width) = std::tuple_cat(sizes);
  problem.alpha = alpha;
  problem.gamma = gamma;
  problem.ignore_void = ignore_void;
  const py::gil_scoped_release no_gil;
  const int used = static_cast<int>(std::min<int64_t>(problem.images * problem.targets, threads));
  cpu::dispatch([&](auto set) {
    Workspace workspace(cpu::mask_loss_workspace<set.value>(problem, used));
    cpu::mask_loss<set.value>(problem, workspace.data(), used);
  });
}

int64_t grid_targets(uintptr_t pixels, bool overlapping, uintptr_t cell, uintptr_t first,
                     uintptr_t target, uintptr_t area, const std::array<int64_t, 5>& sizes) {
  for (const int64_t size : sizes) at_least("sizes", size, 1);
  const auto [targets, height, width, grid_height, grid_width] = sizes;
  const int64_t most = grid_height * grid_width * (overlapping ? targets : 1);
  if (most > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("sizes: expected T * h * w below 2^31, got " +
                                std::to_string(most));
  }
  const py::gil_scoped_release no_gil;
  const cpu::GridTargets problem{pointer<const void>(pixels),
                                 overlapping,
                                 targets,
                                 height,
                                 width,
                                 grid_height,
                                 grid_width,
                                 pointer<int32_t>(cell),
                                 pointer<int32_t>(first),
                                 pointer<int16_t>(target),
                                 pointer<double>(area)};
  int64_t runs = 0;
  cpu::dispatch([&](auto set) { runs = cpu::grid_targets<set.value>(problem); });
  return runs;
}

void matching_sums(uintptr_t logits, int type, bool cells_first, uintptr_t cell, uintptr_t first,
                   uintptr_t target, uintptr_t sums, const std::array<int64_t, 6>& sizes,
                   float alpha, float gamma, bool ignore_void, int threads) {
  const auto [queries, stride, start, cells, targets, runs] = sizes;
  at_least("queries", queries, 1);
  at_least("stride", stride, cells_first ? queries : cells);
  at_least("start", start, 0);
  at_least("cells", cells, 0);
  at_least("targets", targets, 0);
  at_least("runs", runs, 1);
  at_least("threads", threads, 1);
  at_least("cells of the grid", pointer<const int32_t>(cell)[runs], start + cells);
  if (cells_first && (stride % cpu::kQueryBlock != 0 || float_type(type) != FloatType::float32)) {
    throw std::invalid_argument("stride: expected float32 in whole blocks of queries, got " +
                                std::to_string(stride));
  }
  const cpu::MatchingSums problem{pointer<const void>(logits),
                                  float_type(type),
                                  cells_first,
                                  {runs, pointer<const int32_t>(cell),
                                   pointer<const int32_t>(first), pointer<const int16_t>(target)},
                                  pointer<double>(sums),
                                  queries,
                                  stride,
                                  start,
                                  cells,
                                  targets,
                                  alpha,
                                  gamma,
                                  ignore_void};
  const py::gil_scoped_release no_gil;
  cpu::dispatch([&](auto set) {
    Workspace workspace(cpu::matching_sums_workspace<set.value>(problem, threads));
    cpu::matching_sums<set.value>(problem, workspace.data(), threads);
  });
}

void matching_cost(uintptr_t probs, uintptr_t labels, uintptr_t num_targets, uintptr_t sums,
                   uintptr_t area, uintptr_t cost, const std::array<int64_t, 6>& sizes,
                   const std::array<float, 3>& weights, bool ignore_void) {
  for (const int64_t size : sizes) at_least("sizes", size, 1);
  cpu::MatchingCost problem{};
  problem.probs = pointer<const float>(probs);
  problem.labels = pointer<const int64_t>(labels);
  problem.num_targets = pointer<const int32_t>(num_targets);
  problem.sums = pointer<const double>(sums);
  problem.area = pointer<const double>(area);
  problem.cost = pointer<float>(cost);
  std::tie(problem.layers, problem.images, problem.queries, problem.targets, problem.cells,
           problem.classes) = std::tuple_cat(sizes);
  std::tie(problem.class_weight, problem.mask_weight, problem.dice_weight) =
      std::tuple_cat(weights);
  problem.ignore_void = ignore_void;
  for (int64_t i = 0; i < problem.images * problem.targets; ++i) {
    const bool is_target = i % problem.targets < problem.num_targets[i / problem.targets];
    if (is_target && (problem.labels[i] < 0 || problem.labels[i] >= problem.classes)) {
      throw std::invalid_argument("labels: expected values in [0, " +
                                  std::to_string(problem.classes) + "), got " +
                                  std::to_string(problem.labels[i]));
    }
  }
  const py::gil_scoped_release no_gil;
  cpu::dispatch([&](auto set) { cpu::matching_cost<set.value>(problem); });
}

void sigmoid_in_place(uintptr_t x, int64_t count, int threads) {
  at_least("count", count, 0);
  at_least("threads", threads, 1);
  const py::gil_scoped_release no_gil;
  cpu::dispatch(
      [&](auto set) { cpu::sigmoid_in_place<set.value>(pointer<float>(x), count, threads); });
}

void sigmoid_backward_in_place(uintptr_t x, uintptr_t grad, int64_t count, int threads) {
  at_least("count", count, 0);
  at_least("threads", threads, 1);
  const py::gil_scoped_release no_gil;
  cpu::dispatch([&](auto set) {
    cpu::sigmoid_backward_in_place<set.value>(pointer<float>(x), pointer<const float>(grad), count,
                                              threads);
  });
}

// Region [B, 2]: 0 < rows <= h and 0 < columns <= w keep the reads inside the grid.
MaskLogits map_logits(uintptr_t logits, int type, uintptr_t region, const MapShape& shape) {
  const double* extent = pointer<const double>(region);
  for (int64_t n = 0; n < shape.images; ++n) {
    const double rows = extent[2 * n], columns = extent[2 * n + 1];
    if (!(rows > 0 && rows <= static_cast<double>(shape.rows) && columns > 0 &&
          columns <= static_cast<double>(shape.columns))) {
      throw std::invalid_argument("region: expected rows and columns of the mask grid, got " +
                                  std::to_string(rows) + ", " + std::to_string(columns));
    }
  }
  return {pointer<const void>(logits), float_type(type), extent, 0, shape.rows};
}

void semantic_map(uintptr_t mask_logits, int type, uintptr_t region, uintptr_t all, uintptr_t large,
                  uintptr_t others, uintptr_t labels, int label_bytes, uintptr_t scores,
                  const std::array<int64_t, 6>& sizes, const std::array<int64_t, 2>& held_rows,
                  int64_t classes, bool sigmoid_first, bool prune, int threads) {
  MapShape shape = map_shape(sizes);
  shape.prune = prune;
  MaskLogits logits = map_logits(mask_logits, type, region, shape);
  std::tie(logits.first_row, logits.last_row) = std::tuple_cat(held_rows);
  at_least("held_rows", logits.first_row, 0);
  at_least("held_rows", logits.held_rows(), 1);
  at_least("held_rows", shape.rows - logits.last_row, 0);
  at_least("classes", classes, 1);
  at_least("threads", threads, 1);
  const cpu::ClassProbabilities probs{classes, pointer<const float>(all),
                                      pointer<const float>(large), pointer<const float>(others)};
  const py::gil_scoped_release no_gil;
  cpu::dispatch([&](auto set) {
    Workspace workspace(
        cpu::semantic_map_workspace<set.value>(shape, classes, sigmoid_first, threads));
    const auto run = [&](auto* map) {
      cpu::semantic_map<set.value>(logits, probs, map, pointer<float>(scores), shape, sigmoid_first,
                                   workspace.data(), threads);
    };
    switch (label_bytes) {
      case 1:
        return run(pointer<uint8_t>(labels));
      case 2:
        return run(pointer<uint16_t>(labels));
      case 4:
        return run(pointer<uint32_t>(labels));
      case 8:
        return run(pointer<uint64_t>(labels));
      default:
        throw std::invalid_argument("label_bytes: expected 1, 2, 4 or 8, got " +
                                    std::to_string(label_bytes));
    }
  });
}

void panoptic_map(uintptr_t mask_logits, int type, uintptr_t region, uintptr_t score,
                  uintptr_t label, uintptr_t is_thing, uintptr_t segments,
                  uintptr_t segment_of_query, uintptr_t area, const std::array<int64_t, 6>& sizes,
                  int64_t classes, int dialect, float score_threshold, float mask_threshold,
                  float overlap_threshold, bool prune, int threads) {
  MapShape shape = map_shape(sizes);
  shape.prune = prune;
  const MaskLogits logits = map_logits(mask_logits, type, region, shape);
  at_least("classes", classes, 1);
  at_least("threads", threads, 1);
  const int64_t* labels = pointer<const int64_t>(label);
  for (int64_t i = 0; i < shape.images * shape.queries; ++i) {
    if (labels[i] < 0 || labels[i] > classes) {
      throw std::invalid_argument("label: expected values in [0, " + std::to_string(classes) +
                                  "], got " + std::to_string(labels[i]));
    }
  }
  const PanopticRules rules{static_cast<Dialect>(dialect), score_threshold, mask_threshold,
                            overlap_threshold};
  const cpu::ClassifiedQueries queries{classes, pointer<const float>(score), labels,
                                       pointer<const uint8_t>(is_thing)};
  const cpu::PanopticOutput output{pointer<int32_t>(segments), pointer<int32_t>(segment_of_query),
                                   pointer<int32_t>(area)};
  const py::gil_scoped_release no_gil;
  cpu::dispatch([&](auto set) {
    Workspace workspace(cpu::panoptic_map_workspace<set.value>(
        shape, classes, rules.dialect == Dialect::transformers, threads));
    cpu::panoptic_map<set.value>(logits, queries, rules, output, shape, workspace.data(), threads);
  });
}

// query [count]: which of the B * Q grids.
const int64_t* grid_indices(uintptr_t query, int64_t count, const MapShape& shape) {
  const int64_t* indices = pointer<const int64_t>(query);
  at_least("count", count, 0);
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] < 0 || indices[i] >= shape.images * shape.queries) {
      throw std::invalid_argument("query: expected values in [0, B * Q), got " +
                                  std::to_string(indices[i]));
    }
  }
  return indices;
}

void instance_statistics(uintptr_t mask_logits, int type, uintptr_t region, uintptr_t query,
                         int64_t count, uintptr_t mean, uintptr_t boxes,
                         const std::array<int64_t, 6>& sizes, int threads) {
  const MapShape shape = map_shape(sizes);
  const MaskLogits logits = map_logits(mask_logits, type, region, shape);
  at_least("threads", threads, 1);
  const int64_t* indices = grid_indices(query, count, shape);
  const py::gil_scoped_release no_gil;
  cpu::dispatch([&](auto set) {
    Workspace workspace(cpu::instance_masks_workspace<set.value>(shape, count, threads));
    cpu::instance_statistics<set.value>(logits, indices, count, pointer<float>(mean),
                                        pointer<int32_t>(boxes), shape, workspace.data(), threads);
  });
}

void instance_masks(uintptr_t mask_logits, int type, uintptr_t region, uintptr_t query,
                    int64_t count, uintptr_t masks, const std::array<int64_t, 6>& sizes,
                    int threads) {
  const MapShape shape = map_shape(sizes);
  const MaskLogits logits = map_logits(mask_logits, type, region, shape);
  at_least("threads", threads, 1);
  const int64_t* indices = grid_indices(query, count, shape);
  const py::gil_scoped_release no_gil;
  cpu::dispatch([&](auto set) {
    Workspace workspace(cpu::instance_masks_workspace<set.value>(shape, count, threads));
    cpu::instance_masks<set.value>(logits, indices, count, pointer<uint8_t>(masks), shape,
                                   workspace.data(), threads);
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("version") = MASKFORMER_VERSION;
#ifdef MASKFORMER_WITH_CUDA
  py::module_ cuda = m.def_submodule("cuda", "The CUDA kernels; see csrc/bindings_cuda.cpp.");
  bind_cuda(cuda);
  m.def("built_with_cuda", [] { return true; });
  m.attr("cuda_architectures") = cuda.attr("architectures");
#else
  m.def("built_with_cuda", [] { return false; });
  m.def("cuda_architectures", [] { return std::vector<std::string>(); });
#endif
  m.def("instruction_set", [] { return cpu::name_of(cpu::instruction_set()); });
  m.def("linear_assignment", &linear_assignment, py::arg("cost"), py::arg("float64"),
        py::arg("num_targets"), py::arg("query_of_target"), py::arg("gap"), py::arg("status"),
        py::arg("problems"), py::arg("targets"), py::arg("queries"), py::arg("threads"));
  m.def("mask_loss", &mask_loss, py::arg("logits"), py::arg("type"), py::arg("pixels"),
        py::arg("overlapping"), py::arg("occupied"), py::arg("valid"), py::arg("focal"),
        py::arg("dice"), py::arg("slopes"), py::arg("sizes"), py::arg("alpha"), py::arg("gamma"),
        py::arg("ignore_void"), py::arg("threads"));
  m.def("sigmoid_in_place", &sigmoid_in_place, py::arg("x"), py::arg("count"), py::arg("threads"));
  m.def("sigmoid_backward_in_place", &sigmoid_backward_in_place, py::arg("x"), py::arg("grad"),
        py::arg("count"), py::arg("threads"));
  m.def("grid_targets", &grid_targets, py::arg("pixels"), py::arg("overlapping"), py::arg("cell"),
        py::arg("first"), py::arg("target"), py::arg("area"), py::arg("sizes"));
  m.attr("query_block") = cpu::kQueryBlock;
  m.def("matching_cost", &matching_cost, py::arg("probs"), py::arg("labels"),
        py::arg("num_targets"), py::arg("sums"), py::arg("area"), py::arg("cost"), py::arg("sizes"),
        py::arg("weights"), py::arg("ignore_void"));
  m.def("matching_sums", &matching_sums, py::arg("logits"), py::arg("type"), py::arg("cells_first"),
        py::arg("cell"), py::arg("first"), py::arg("target"), py::arg("sums"), py::arg("sizes"),
        py::arg("alpha"), py::arg("gamma"), py::arg("ignore_void"), py::arg("threads"));
  m.def("semantic_map", &semantic_map, py::arg("mask_logits"), py::arg("type"), py::arg("region"),
        py::arg("all"), py::arg("large"), py::arg("others"), py::arg("labels"),
        py::arg("label_bytes"), py::arg("scores"), py::arg("sizes"), py::arg("held_rows"),
        py::arg("classes"), py::arg("sigmoid_first"), py::arg("prune"), py::arg("threads"));
  m.def("panoptic_map", &panoptic_map, py::arg("mask_logits"), py::arg("type"), py::arg("region"),
        py::arg("score"), py::arg("label"), py::arg("is_thing"), py::arg("segments"),
        py::arg("segment_of_query"), py::arg("area"), py::arg("sizes"), py::arg("classes"),
        py::arg("dialect"), py::arg("score_threshold"), py::arg("mask_threshold"),
        py::arg("overlap_threshold"), py::arg("prune"), py::arg("threads"));
  m.def("instance_statistics", &instance_statistics, py::arg("mask_logits"), py::arg("type"),
        py::arg("region"), py::arg("query"), py::arg("count"), py::arg("mean"), py::arg("boxes"),
        py::arg("sizes"), py::arg("threads"));
  m.def("instance_masks", &instance_masks, py::arg("mask_logits"), py::arg("type"),
        py::arg("region"), py::arg("query"), py::arg("count"), py::arg("masks"), py::arg("sizes"),
        py::arg("threads"));
}

}  // namespace maskformer
