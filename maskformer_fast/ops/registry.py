"""One registry: which backends an op has, which of them can run here, and which one runs.

An op file calls `register(name, schema, fake, backends)` once; adding a backend to an op is one
line in that dictionary. The op's schema ends with `str backend`: the choice is made once, in
Python, before dispatch (under torch.compile: at trace time), by

    the `backend` argument, else `use_backend(...)`, else MASKFORMER_FAST_BACKEND, else "auto".

"auto" takes the first backend of the device's list that has the op and can run here, and the
reference where there is none. A backend that is named and cannot run raises and says why.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

ENVIRONMENT_VARIABLE = "MASKFORMER_FAST_BACKEND"
BACKENDS = ("reference", "cpu", "cuda", "triton", "cuda_emulated")
AUTO_ORDER = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # by device type; then the reference

_library = torch.library.Library("maskformer_fast", "DEF")
_requested: ContextVar[str] = ContextVar("maskformer_fast_backend", default="auto")


@dataclass(frozen=True)
class Op:
    """A registered op: its implementations by backend, all with the schema's signature."""

    name: str
    backends: dict[str, Callable[..., Any]]
    float64_kernels: bool  # kernels take float64 too (linear_assignment)
    call: Callable[..., Any]  # torch.ops.maskformer_fast.<name>.default

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


OPS: dict[str, Op] = {}


def register(
    name: str,
    schema: str,
    *,
    fake: Callable[..., Any],
    backends: dict[str, Callable[..., Any]],
    float64_kernels: bool = False,
) -> Op:
    """Define `maskformer_fast::name` with torch.library; its last argument names the backend."""
    unknown = set(backends) - set(BACKENDS)
    if unknown or "reference" not in backends:
        raise ValueError(f"{name}: expected backends of {BACKENDS}, got {tuple(backends)}")
    _library.define(name + schema)
    op = Op(name, backends, float64_kernels, getattr(torch.ops.maskformer_fast, name).default)
    OPS[name] = op

    def run(*arguments: Any) -> Any:
        return op.backends[arguments[-1]](*arguments[:-1])

    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"maskformer_fast::{name}", lambda *arguments: fake(*arguments[:-1]), lib=_library
    )
    return op


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops called inside with backend `name`, in this thread or task.

    Raises ValueError for a name that is not a backend. Whether it can run is found out, and said,
    by the op that is called.
    """
    token = _requested.set(_known(name, "use_backend"))
    try:
        yield
    finally:
        _requested.reset(token)


@torch.compiler.assume_constant_result
def resolve(op_name: str, argument: str, device: str, dtype: torch.dtype) -> str:
    """The backend that runs `op_name` for tensors of this device type and dtype.

    Raises ValueError for an unknown name, RuntimeError for a backend that cannot run, with the
    reason.
    """
    op = OPS[op_name]
    name = _known(argument, "backend")
    if name == "auto":
        name = _requested.get()
    if name == "auto":
        name = _known(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)
    if name == "auto":
        for candidate in AUTO_ORDER.get(device, ()):
            if _obstacle(op, candidate, device, dtype) is None:
                return candidate
        return "reference"
    obstacle = _obstacle(op, name, device, dtype)
    if obstacle is not None:
        raise RuntimeError(f"{op_name}: backend {name!r} cannot run: {obstacle}")
    return name


def backends() -> dict[str, dict[str, str | None]]:
    """For each op and each backend: None if it can run here, else the reason why not."""
    return {
        op.name: {name: _missing(op, name) for name in BACKENDS}
        for op in OPS.values()
        if not op.name.endswith("_backward")
    }


def _known(name: str, argument: str) -> str:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{argument}: expected 'auto' or one of {BACKENDS}, got {name!r}")
    return name


def _missing(op: Op, backend: str) -> str | None:
    if backend not in op.backends:
        return "this op has no such implementation yet"
    return _PROBES[backend]()


def _obstacle(op: Op, backend: str, device: str, dtype: torch.dtype) -> str | None:
    """Why `backend` cannot run `op` on this device type and dtype; None if it can."""
    if backend == "reference":
        return None
    missing = _missing(op, backend)
    if missing is not None:
        return missing
    if dtype == torch.float64 and not op.float64_kernels:
        return "its kernels take float32, float16 and bfloat16; got float64 (use 'reference')"
    if backend == "triton" and dtype == torch.bfloat16 and _interpreted():
        return "Triton's interpreter (TRITON_INTERPRET=1) computes bfloat16 wrongly"
    on_host = backend in ("cpu", "cuda_emulated") or (backend == "triton" and _interpreted())
    expected = "cpu" if on_host else "cuda"
    return None if device == expected else f"it takes {expected} tensors, got {device}"


@functools.cache  # of the module: a failed import is tried again
def compiled_module() -> Any:
    """The compiled module `maskformer_fast._C`; ImportError where it is not built."""
    return importlib.import_module("maskformer_fast._C")


@functools.cache
def emulated_module() -> Any:
    """`maskformer_fast._C_emulated`, the CUDA kernels on the host; ImportError if not built."""
    return importlib.import_module("maskformer_fast._C_emulated")


def cuda_module(backend: str) -> Any:
    """The module with the CUDA launchers of backend "cuda" or "cuda_emulated"."""
    return emulated_module() if backend == "cuda_emulated" else compiled_module().cuda


def triton_backend(file: str, launcher: str) -> Callable[..., Any]:
    """The entry of `register(backends=...)` for maskformer_fast/kernels/<file>.py: <launcher>.

    Triton is imported by the first call, not with the package.
    """

    def run(*arguments: Any) -> Any:
        kernels = importlib.import_module(f"maskformer_fast.kernels.{file}")
        return getattr(kernels, launcher)(*arguments)

    return run


def _cpu_probe() -> str | None:
    try:
        compiled_module()
    except ImportError as error:
        return f"the compiled module does not import ({error}); build it with `pip install .`"
    return None


def _cuda_probe() -> str | None:
    missing = _cpu_probe()
    if missing is not None:
        return missing
    if not compiled_module().built_with_cuda():
        return "the compiled module was built without CUDA (nvcc was not found)"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    return _architecture_obstacle(
        tuple(compiled_module().cuda_architectures()), torch.cuda.get_device_capability()
    )


@functools.cache
def _architecture_obstacle(built: tuple[str, ...], capability: tuple[int, int]) -> str | None:
    """Why code for `built`, as ("sm_80", "compute_90"), does not run on this GPU; None if it does.

    Code runs on its major version from its minor version on, PTX on everything from its own on;
    names with a letter (sm_90a) on exactly their own.
    """
    for kind, number in (name.split("_") for name in built):
        if not number.isdigit():
            runs = number[:-1] == "{}{}".format(*capability)
        else:
            major, minor = divmod(int(number), 10)
            runs = (major, minor) <= capability and (kind == "compute" or major == capability[0])
        if runs:
            return None
    gpu = "sm_{}{}".format(*capability)
    return f"the GPU is {gpu}; the compiled module was built for {', '.join(built)}"


def _triton_probe() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if _interpreted():
        return None
    return None if torch.cuda.is_available() else "torch sees no NVIDIA GPU"


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _emulation_probe() -> str | None:
    try:
        emulated_module()
    except ImportError as error:
        return f"the emulation does not import ({error}); `make emulation` in a checkout builds it"
    return None


_PROBES: dict[str, Callable[[], str | None]] = {
    "reference": lambda: None,
    "cpu": _cpu_probe,
    "cuda": _cuda_probe,
    "triton": _triton_probe,
    "cuda_emulated": _emulation_probe,
}
