// The CUDA launchers in Python: `_C.cuda`, and for the host the module `_C_emulated`. Tensors come
// as addresses that nobody reads here, since they may lie on a GPU: sizes are checked, values are
// not. Every launcher takes `device` and `stream`; its workspace is a tensor of the caller.

#include <vector>

#include "bindings.hpp"
#include "cuda/instance_masks.hpp"
#include "cuda/linear_assignment.hpp"
#include "cuda/panoptic_map.hpp"
#include "cuda/semantic_map.hpp"
#include "cuda/stream.hpp"

namespace maskformer {
namespace {

using namespace py::literals;

int64_t linear_assignment_workspace(int64_t problems, int64_t targets, int64_t queries) {
  at_least("problems", problems, 0);
  at_least("targets", targets, 0);
  at_least("queries", queries, 1);
  return cuda::linear_assignment_workspace(problems, targets, queries);
}

void linear_assignment(uintptr_t cost, bool float64, uintptr_t num_targets,
                       uintptr_t query_of_target, uintptr_t gap, uintptr_t status, int64_t problems,
                       int64_t targets, int64_t queries, uintptr_t workspace, int device,
                       uintptr_t stream) {
  linear_assignment_workspace(problems, targets, queries);  // checks the sizes
  const py::gil_scoped_release no_gil;
  const cuda::DeviceGuard guard(device);
  cuda::linear_assignment(pointer<const void>(cost), float64, pointer<const int32_t>(num_targets),
                          pointer<int64_t>(query_of_target), pointer<double>(gap),
                          pointer<int8_t>(status), problems, targets, queries,
                          pointer<std::byte>(workspace), reinterpret_cast<cuda::Stream>(stream));
}

cuda::ThingClasses thing_classes_of(const std::vector<int64_t>& labels, int64_t classes) {
  cuda::ThingClasses things{};
  for (const int64_t label : labels) {
    if (label < 0 || label >= classes) {
      throw std::invalid_argument("thing_classes: expected values in [0, " +
                                  std::to_string(classes) + "), got " + std::to_string(label));
    }
    things.words[label / 32] |= 1u << (label % 32);
  }
  return things;
}

// region: 0, or on the device. The type is that of both logits.
void panoptic_map(uintptr_t class_logits, uintptr_t mask_logits, int type, uintptr_t region,
                  const std::vector<int64_t>& thing_classes, uintptr_t segments,
                  uintptr_t segment_of_query, uintptr_t area, uintptr_t score, uintptr_t label,
                  const std::array<int64_t, 6>& sizes, int64_t classes, int dialect,
                  float score_threshold, float mask_threshold, float overlap_threshold,
                  uintptr_t workspace, int device, uintptr_t stream) {
  const MapShape shape = map_shape(sizes);
  at_least("classes", classes, 1);
  if (classes > cuda::ThingClasses::kMost) {
    throw std::invalid_argument("classes: expected at most " +
                                std::to_string(cuda::ThingClasses::kMost) + " on CUDA, got " +
                                std::to_string(classes));
  }
  const MaskLogits logits{pointer<const void>(mask_logits), float_type(type),
                          pointer<const double>(region)};
  const cuda::ThingClasses things = thing_classes_of(thing_classes, classes);
  const PanopticRules rules{static_cast<Dialect>(dialect), score_threshold, mask_threshold,
                            overlap_threshold};
  const cuda::PanopticOutput output{pointer<int32_t>(segments), pointer<int32_t>(segment_of_query),
                                    pointer<int32_t>(area), pointer<float>(score),
                                    pointer<int64_t>(label)};
  const py::gil_scoped_release no_gil;
  const cuda::DeviceGuard guard(device);
  cuda::panoptic_map({pointer<const void>(class_logits), classes}, logits, things, rules, output,
                     shape, pointer<std::byte>(workspace), pointer<CUstream_st>(stream));
}

int64_t semantic_map_workspace(int64_t images, int64_t queries, int64_t rows, int64_t columns,
                               int64_t height, int64_t width, int64_t classes) {
  at_least("classes", classes, 1);
  const MapShape shape = map_shape({images, queries, rows, columns, height, width});
  return cuda::semantic_map_workspace(shape, classes);
}

void semantic_map(uintptr_t mask_logits, int type, uintptr_t region, uintptr_t probs,
                  uintptr_t labels, int label_bytes, uintptr_t scores,
                  const std::array<int64_t, 6>& sizes, int64_t classes, bool sigmoid_first,
                  uintptr_t workspace, int device, uintptr_t stream) {
  const MapShape shape = map_shape(sizes);
  at_least("classes", classes, 1);
  if (label_bytes != 1 && label_bytes != 2 && label_bytes != 4 && label_bytes != 8) {
    throw std::invalid_argument("label_bytes: expected 1, 2, 4 or 8, got " +
                                std::to_string(label_bytes));
  }
  const MaskLogits logits{pointer<const void>(mask_logits), float_type(type),
                          pointer<const double>(region)};
  const cuda::LabelMap map{pointer<void>(labels), label_bytes, pointer<float>(scores)};
  const py::gil_scoped_release no_gil;
  const cuda::DeviceGuard guard(device);
  cuda::semantic_map(logits, {classes, pointer<const float>(probs)}, map, shape, sigmoid_first,
                     pointer<std::byte>(workspace), pointer<CUstream_st>(stream));
}

int64_t instance_masks_workspace(int64_t images, int64_t queries, int64_t rows, int64_t columns,
                                 int64_t height, int64_t width) {
  return cuda::instance_masks_workspace(map_shape({images, queries, rows, columns, height, width}));
}

void instance_statistics(uintptr_t mask_logits, int type, uintptr_t region, uintptr_t wanted,
                         uintptr_t mean, uintptr_t boxes, const std::array<int64_t, 6>& sizes,
                         uintptr_t workspace, int device, uintptr_t stream) {
  const MapShape shape = map_shape(sizes);
  const MaskLogits logits{pointer<const void>(mask_logits), float_type(type),
                          pointer<const double>(region)};
  const py::gil_scoped_release no_gil;
  const cuda::DeviceGuard guard(device);
  cuda::instance_statistics(logits, pointer<const uint8_t>(wanted), pointer<float>(mean),
                            pointer<int32_t>(boxes), shape, pointer<std::byte>(workspace),
                            pointer<CUstream_st>(stream));
}

void instance_masks(uintptr_t mask_logits, int type, uintptr_t query, int64_t count,
                    uintptr_t masks, const std::array<int64_t, 6>& sizes, uintptr_t workspace,
                    int device, uintptr_t stream) {
  const MapShape shape = map_shape(sizes);
  at_least("count", count, 0);
  const MaskLogits logits{pointer<const void>(mask_logits), float_type(type), nullptr};
  const py::gil_scoped_release no_gil;
  const cuda::DeviceGuard guard(device);
  cuda::instance_masks(logits, pointer<const int64_t>(query), count, pointer<uint8_t>(masks), shape,
                       pointer<std::byte>(workspace), pointer<CUstream_st>(stream));
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("architectures", [] { return py::str(cuda::architectures()).attr("split")(); });
  m.def("linear_assignment_workspace", &linear_assignment_workspace, "problems"_a, "targets"_a,
        "queries"_a);
  m.def("linear_assignment", &linear_assignment, "cost"_a, "float64"_a, "num_targets"_a,
        "query_of_target"_a, "gap"_a, "status"_a, "problems"_a, "targets"_a, "queries"_a,
        "workspace"_a, "device"_a, "stream"_a);
  m.def("instance_masks_workspace", &instance_masks_workspace);
  m.def("instance_statistics", &instance_statistics, py::kw_only(), "mask_logits"_a, "type"_a,
        "region"_a, "wanted"_a, "mean"_a, "boxes"_a, "sizes"_a, "workspace"_a, "device"_a,
        "stream"_a);
  m.def("instance_masks", &instance_masks, py::kw_only(), "mask_logits"_a, "type"_a, "query"_a,
        "count"_a, "masks"_a, "sizes"_a, "workspace"_a, "device"_a, "stream"_a);
  m.def("panoptic_map_workspace", &cuda::panoptic_map_workspace);
  m.def("panoptic_map", &panoptic_map, py::kw_only(), "class_logits"_a, "mask_logits"_a, "type"_a,
        "region"_a, "thing_classes"_a, "segments"_a, "segment_of_query"_a, "area"_a, "score"_a,
        "label"_a, "sizes"_a, "classes"_a, "dialect"_a, "score_threshold"_a, "mask_threshold"_a,
        "overlap_threshold"_a, "workspace"_a, "device"_a, "stream"_a);
  m.def("semantic_map_workspace", &semantic_map_workspace);
  m.def("semantic_map", &semantic_map, py::kw_only(), "mask_logits"_a, "type"_a, "region"_a,
        "probs"_a, "labels"_a, "label_bytes"_a, "scores"_a, "sizes"_a, "classes"_a,
        "sigmoid_first"_a, "workspace"_a, "device"_a, "stream"_a);
}

}  // namespace maskformer

#ifdef MASKFORMER_EMULATED
PYBIND11_MODULE(_C_emulated, m) { maskformer::bind_cuda(m); }
#endif
