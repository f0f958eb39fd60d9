"""On a GPU: no op waits for the device, so that it can be captured in a CUDA graph; and an op runs
on the current stream of its tensors' device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from backends import device_of, implemented
from test_safety import CASES, Case, identical, inputs_of
from torch import Tensor

LATE = 10**8  # cycles, some 50 ms, before a stream writes what it then reads


def on_gpu_only(op: str, backend: str) -> tuple[pytest.MarkDecorator, ...]:
    """Why this backend cannot run the op on a GPU here, as a mark."""
    if backend == "triton" and device_of(backend) == "cpu":
        return (pytest.mark.skip(reason="triton: its interpreter runs on the CPU"),)
    return implemented(op)[backend]


each_case = pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(case, backend, marks=on_gpu_only(case.op, backend), id=f"{name}-{backend}")
        for name, case in CASES.items()
        for backend in ("cuda", "triton")
        if backend in implemented(case.op)
    ],
)


def on_gpu(case: Case, seed: int) -> list[Tensor]:
    return inputs_of(case, "cuda", torch.float32, seed)


def overwrite(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@each_case
def test_the_host_does_not_wait(case: Case, backend: str) -> None:
    inputs = on_gpu(case, 0)
    case.run(backend, *inputs)  # what only a first call does
    with waiting_is_an_error():
        case.run(backend, *inputs)


@each_case
def test_a_captured_call_replays_on_other_inputs(case: Case, backend: str) -> None:
    inputs, others = on_gpu(case, 0), on_gpu(case, 1)
    first, expected = case.run(backend, *inputs), case.run(backend, *others)
    assert not identical(first, expected)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.run(backend, *inputs)
    with torch.cuda.graph(graph, stream=stream):
        captured = case.run(backend, *inputs)
    for values, results in ((others, expected), (on_gpu(case, 0), first)):
        overwrite(inputs, values)
        graph.replay()
        assert identical(captured, results)


@each_case
def test_runs_on_the_current_stream(case: Case, backend: str) -> None:
    stale, inputs = on_gpu(case, 1), on_gpu(case, 0)
    expected = case.run(backend, *inputs)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LATE)
        overwrite(stale, inputs)
        got = case.run(backend, *stale)
    stream.synchronize()
    assert identical(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@each_case
def test_runs_on_the_device_of_its_tensors(case: Case, backend: str) -> None:
    inputs = [t.to("cuda:1") for t in on_gpu(case, 0)]
    with torch.cuda.device(1):
        expected = case.run(backend, *inputs)
    with torch.cuda.device(0):
        got = case.run(backend, *inputs)
        assert torch.cuda.current_device() == 0
    assert {t.device.index for t in got} == {1}
    assert identical(got, expected)
