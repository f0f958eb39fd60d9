// The CUDA launchers in Python: `_C.cuda`, and for the host the module `_C_emulated`. Tensors come
// as addresses that nobody reads here, since they may lie on a GPU: sizes are checked, values are
// not. Every launcher takes `device` and `stream`; its workspace is a tensor of the caller.

#include "bindings.hpp"
#include "cuda/stream.hpp"

namespace maskformer {

void bind_cuda(py::module_& m) {
  m.def("architectures", [] { return py::str(cuda::architectures()).attr("split")(); });
}

}  // namespace maskformer

#ifdef MASKFORMER_EMULATED
PYBIND11_MODULE(_C_emulated, m) { maskformer::bind_cuda(m); }
#endif
