"""How a test runs once for every backend of an op."""

import os

import pytest

import maskformer_fast
from maskformer_fast.ops.registry import OPS


def each_backend(op: str) -> pytest.MarkDecorator:
    """Parametrise `backend`; of those that implement the op, one that
    cannot run here is skipped with its own reason."""
    table = maskformer_fast.backends()[op]
    implemented = OPS[op].backends
    return pytest.mark.parametrize(
        "backend",
        [
            pytest.param(name, marks=pytest.mark.skip(reason=f"{name}: {reason}") if reason else ())
            for name, reason in table.items()
            if name in implemented
        ],
    )


def device_of(backend: str) -> str:
    """The device type of the tensors that a backend takes."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return "cuda" if backend == "cuda" or (backend == "triton" and not interpreted) else "cpu"
