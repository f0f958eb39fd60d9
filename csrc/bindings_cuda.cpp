// The CUDA launchers in Python: `_C.cuda`, and for the host the module `_C_emulated`. Tensors come
// as addresses that nobody reads here, since they may lie on a GPU: sizes are checked, values are
// not. Every launcher takes `device` and `stream`; its workspace is a tensor of the caller.

#include "bindings.hpp"
#include "cuda/linear_assignment.hpp"
#include "cuda/stream.hpp"

namespace maskformer {
namespace {

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

}  // namespace

void bind_cuda(py::module_& m) {
  using namespace py::literals;
  m.def("architectures", [] { return py::str(cuda::architectures()).attr("split")(); });
  m.def("linear_assignment_workspace", &linear_assignment_workspace, "problems"_a, "targets"_a,
        "queries"_a);
  m.def("linear_assignment", &linear_assignment, "cost"_a, "float64"_a, "num_targets"_a,
        "query_of_target"_a, "gap"_a, "status"_a, "problems"_a, "targets"_a, "queries"_a,
        "workspace"_a, "device"_a, "stream"_a);
}

}  // namespace maskformer

#ifdef MASKFORMER_EMULATED
PYBIND11_MODULE(_C_emulated, m) { maskformer::bind_cuda(m); }
#endif
