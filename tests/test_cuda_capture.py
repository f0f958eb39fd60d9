"""On a GPU: no op waits for the device, so that it can be captured in a CUDA graph; and an op runs
on the current stream of its tensors' device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from backends import implemented
from test_safety import CASES, Case, identical, inputs_of
from torch import Tensor

LATE = 10**8  # cycles, some 50 ms, before a stream writes what it then reads

each_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=implemented(case.op)["cuda"], id=name)
        for name, case in CASES.items()
        if "cuda" in implemented(case.op)
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
def test_the_host_does_not_wait(case: Case) -> None:
    inputs = on_gpu(case, 0)
    case.run("cuda", *inputs)  # what only a first call does
    with waiting_is_an_error():
        case.run("cuda", *inputs)


@each_case
def test_a_captured_call_replays_on_other_inputs(case: Case) -> None:
    inputs, others = on_gpu(case, 0), on_gpu(case, 1)
    first, expected = case.run("cuda", *inputs), case.run("cuda", *others)
    assert not identical(first, expected)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.run("cuda", *inputs)
    with torch.cuda.graph(graph, stream=stream):
        captured = case.run("cuda", *inputs)
    for values, results in ((others, expected), (on_gpu(case, 0), first)):
        overwrite(inputs, values)
        graph.replay()
        assert identical(captured, results)


@each_case
def test_runs_on_the_current_stream(case: Case) -> None:
    stale, inputs = on_gpu(case, 1), on_gpu(case, 0)
    expected = case.run("cuda", *inputs)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LATE)
        overwrite(stale, inputs)
        got = case.run("cuda", *stale)
    stream.synchronize()
    assert identical(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@each_case
def test_runs_on_the_device_of_its_tensors(case: Case) -> None:
    inputs = [t.to("cuda:1") for t in on_gpu(case, 0)]
    with torch.cuda.device(1):
        expected = case.run("cuda", *inputs)
    with torch.cuda.device(0):
        got = case.run("cuda", *inputs)
        assert torch.cuda.current_device() == 0
    assert {t.device.index for t in got} == {1}
    assert identical(got, expected)
