"""How a test runs once for every backend of an op."""

import os
from collections.abc import Collection

import pytest
import torch

import maskformer_fast
from maskformer_fast.ops.registry import BACKENDS, OPS

CUDA_BACKENDS = ("cuda", "cuda_emulated")


def implemented(op: str) -> dict[str, tuple[pytest.MarkDecorator, ...]]:
    """The backends that implement the op; one that cannot run here is to be skipped with its own
    reason."""
    return {
        name: (pytest.mark.skip(reason=f"{name}: {reason}"),) if reason else ()
        for name, reason in maskformer_fast.backends()[op].items()
        if name in OPS[op].backends
    }


def each_backend(op: str, *, of: Collection[str] = BACKENDS) -> pytest.MarkDecorator:
    """Parametrise `backend` by those `of` these that implement the op."""
    marks = {name: marks for name, marks in implemented(op).items() if name in of}
    return pytest.mark.parametrize(
        "backend", [pytest.param(name, marks=found) for name, found in marks.items()]
    )


def device_of(backend: str) -> str:
    """The device type of the tensors that a backend takes."""
    return "cuda" if backend == "cuda" or (backend == "triton" and not interpreted()) else "cpu"


def interpreted() -> bool:
    """Whether backend "triton" is Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def skip_if_refused(backend: str, dtype: torch.dtype) -> None:
    """Skip what a backend does not compute: bfloat16 in Triton's interpreter."""
    if backend == "triton" and dtype == torch.bfloat16 and interpreted():
        pytest.skip("Triton's interpreter computes bfloat16 wrongly")
