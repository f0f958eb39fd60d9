// The CUDA launchers in Python: `_C.cuda`, and for the host the module `_C_emulated`. Tensors come
// as addresses that nobody reads here, since they may lie on a GPU: sizes are checked, values are
// not. Every launcher takes `device` and `stream`; its workspace is a tensor of the caller.

#include "bindings.hpp"
#include "cuda/semantic_map.hpp"
#include "cuda/stream.hpp"

namespace maskformer {
namespace {

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
                     pointer<std::byte>(workspace), reinterpret_cast<cuda::Stream>(stream));
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("architectures", [] { return py::str(cuda::architectures()).attr("split")(); });
  m.def("semantic_map_workspace", &semantic_map_workspace, py::arg("images"), py::arg("queries"),
        py::arg("rows"), py::arg("columns"), py::arg("height"), py::arg("width"),
        py::arg("classes"));
  m.def("semantic_map", &semantic_map, py::arg("mask_logits"), py::arg("type"), py::arg("region"),
        py::arg("probs"), py::arg("labels"), py::arg("label_bytes"), py::arg("scores"),
        py::arg("sizes"), py::arg("classes"), py::arg("sigmoid_first"), py::arg("workspace"),
        py::arg("device"), py::arg("stream"));
}

}  // namespace maskformer

#ifdef MASKFORMER_EMULATED
PYBIND11_MODULE(_C_emulated, m) { maskformer::bind_cuda(m); }
#endif
