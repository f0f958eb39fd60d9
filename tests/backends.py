"""How a test runs once for every backend of an op."""

import os

import pytest

import maskformer_fast
from maskformer_fast.ops.registry import OPS


def implemented(op: str) -> dict[str, tuple[pytest.MarkDecorator, ...]]:
    """The backends that implement the op; one that cannot run here is to be skipped with its own
    reason."""
    return {
        name: (pytest.mark.skip(reason=f"{name}: {reason}"),) if reason else ()
        for name, reason in maskformer_fast.backends()[op].items()
        if name in OPS[op].backends
    }


def each_backend(op: str) -> pytest.MarkDecorator:
    """Parametrise `backend` by those that implement the op."""
    return pytest.mark.parametrize(
        "backend", [pytest.param(name, marks=marks) for name, marks in implemented(op).items()]
    )


def device_of(backend: str) -> str:
    """The device type of the tensors that a backend takes."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return "cuda" if backend == "cuda" or (backend == "triton" and not interpreted) else "cpu"
