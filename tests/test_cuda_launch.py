"""ops/cuda_launch.py: what a launcher gets from Python, without any kernel."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maskformer_fast.ops import registry
from maskformer_fast.ops.cuda_launch import Kernels, cuda_backends


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every call of the launcher `fill`, in place of the emulated module."""
    seen: list[dict[str, Any]] = []

    def fill(**arguments: Any) -> None:
        if arguments["count"] < 0:
            raise RuntimeError("fill: no kernel image")
        seen.append(arguments)

    module = SimpleNamespace(fill=fill, fill_workspace=lambda a, b: 8 * a * b)
    monkeypatch.setattr(registry, "emulated_module", lambda: module)
    return seen


def test_tensors_become_addresses(calls: list[dict[str, Any]]) -> None:
    x = torch.zeros(3)
    Kernels("cuda_emulated")("fill", x=x, nothing=None, count=3, fast=True)
    expected = {"x": x.data_ptr(), "nothing": 0, "count": 3, "fast": True}
    assert calls == [expected | {"device": 0, "stream": 0}]


def test_workspace_has_the_size_that_the_launcher_asks_for(calls: list[dict[str, Any]]) -> None:
    workspace = Kernels("cuda_emulated").workspace("fill", torch.device("cpu"), 3, 5)
    assert workspace.shape == (120,) and workspace.dtype == torch.uint8


def test_an_error_names_the_shapes(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(RuntimeError, match=r"fill: no kernel image; x \(2, 3\), y \(\)"):
        Kernels("cuda_emulated")("fill", x=torch.zeros(2, 3), y=torch.tensor(1), count=-1)


def test_strided_tensors_are_refused(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="fill: y: expected a contiguous tensor on cpu"):
        Kernels("cuda_emulated")("fill", x=torch.zeros(3), y=torch.zeros(4)[::2], count=1)


def test_one_implementation_serves_both_backends() -> None:
    backends = cuda_backends(lambda kernels, x: (kernels.backend, x))
    assert {name: run(5) for name, run in backends.items()} == {
        "cuda": ("cuda", 5),
        "cuda_emulated": ("cuda_emulated", 5),
    }
