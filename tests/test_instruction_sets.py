"""The instruction sets for which the C++ kernels are compiled: every other test runs the machine's
best; here each of the others is compared with the reference, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from map_cases import TIE, assert_equal_off_ties
from op_cases import LOSS_TOLERANCE, TOLERANCE
from test_safety import CASES, Case, Results, inputs_of, random
from torch import Tensor

import maskformer_fast
from maskformer_fast.ops.registry import compiled_module

VARIABLE = "MASKFORMER_FAST_INSTRUCTION_SET"
LOSSES = ("matching_cost", "matching_cost_from_logits", "mask_loss")
missing = maskformer_fast.backends()["mask_logits"]["cpu"]
needs_compiled_module = pytest.mark.skipif(missing is not None, reason=str(missing))


def assert_close(case: Case, got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE.get(got.dtype, TOLERANCE[torch.float32])
    if case.op in LOSSES and got.dtype == torch.float32:
        tolerance = LOSS_TOLERANCE
    if case.op == "semantic_map_from_features":
        tolerance = TOLERANCE[dtype]  # its logits are of that dtype
    largest = float(expected.detach().abs().max())  # of a gradient far below 1
    atol = tolerance["atol"] * min(1.0, largest)
    torch.testing.assert_close(got.double(), expected, rtol=tolerance["rtol"], atol=atol)


def exact(case: Case, inputs: list[Tensor], noise: float = 0.0) -> Results:
    """The reference in float64, its inputs changed by about `noise`, relative."""
    dtype = inputs[0].dtype
    changed = [
        t.double() * (1 + noise * random(seed, *t.shape)) if t.dtype == dtype else t
        for seed, t in enumerate(inputs)
    ]
    return case.run("reference", *changed)


def compare(case: Case, inputs: list[Tensor], got: Results) -> None:
    """AssertionError if `got` is not the reference's: floats within the tolerance, integers equal
    but for ties, which the reference itself decides otherwise if its inputs differ by rounding."""
    dtype = inputs[0].dtype
    if case.op == "linear_assignment":
        return compare_assignments(*inputs, got)
    rounding = TOLERANCE[dtype]["rtol"] if case.op == "semantic_map_from_features" else TIE
    expected, more, less = (exact(case, inputs, noise) for noise in (0, rounding, -rounding))
    for found, right, one, other in zip(got, expected, more, less, strict=True):
        if found.is_floating_point():
            assert_close(case, found, right, dtype)
        else:
            assert_equal_off_ties(found, right, (one != right) | (other != right))


def compare_assignments(cost: Tensor, num_targets: Tensor, got: Results) -> None:
    """Equal totals, status and gap, and one to one; which of several optima is free."""
    expected = maskformer_fast.ops.linear_assignment(cost, num_targets, backend="reference")
    totals = []
    for query_of_target in (got[0], expected.query_of_target):
        matched = query_of_target >= 0
        for row in query_of_target:
            assert row[row >= 0].unique().numel() == (row >= 0).sum()
        paid = cost.gather(2, query_of_target.clamp(min=0)[..., None])[..., 0]
        totals.append(paid.double().mul(matched).sum(1))
    torch.testing.assert_close(*totals, rtol=1e-9, atol=0)
    torch.testing.assert_close(got[1:], expected[1:], rtol=0, atol=1e-9)


def compare_all() -> None:
    for name, case in CASES.items():
        for dtype in TOLERANCE:
            inputs = inputs_of(case, "cpu", dtype)
            try:
                compare(case, inputs, case.run("cpu", *inputs))
            except AssertionError as error:
                raise AssertionError(f"{name}, {dtype}: {error}") from error
    print(compiled_module().instruction_set())


@needs_compiled_module
@pytest.mark.parametrize("instructions", ["baseline", "avx2"])
def test_every_op_gives_the_results_of_the_reference(instructions: str) -> None:
    environment = os.environ | {VARIABLE: instructions, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", f"import {__name__}; {__name__}.compare_all()"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "one that this machine runs" in result.stderr:
        pytest.skip(f"this machine does not run {instructions}")
    assert (result.returncode, result.stdout.split()) == (0, [instructions]), result.stderr


ASSIGN_WITH_NUMPY = """
import importlib.util, sys
import numpy as np

spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for t, q in ((1, 1), (7, 9), (33, 31), (32, 32), (40, 100)):
    cost = np.random.default_rng(0).random((3, t, q)).astype(sys.argv[2])
    counts = np.full(3, t, dtype=np.int32)
    matching, gap, status = np.zeros((3, t), int), np.zeros(3), np.zeros(3, np.int8)
    arrays = (counts, matching, gap, status)
    module.linear_assignment(
        cost.ctypes.data, cost.itemsize == 8, *(a.ctypes.data for a in arrays), 3, t, q, threads=2
    )
    print(matching.tolist(), gap.tolist(), status.tolist())
print(module.instruction_set(), "torch" in sys.modules, file=sys.stderr)
"""


def assign_with(instructions: str, dtype: str = "float64") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {VARIABLE: instructions}
    command = [sys.executable, "-c", ASSIGN_WITH_NUMPY, compiled_module().__file__, dtype]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@needs_compiled_module
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("instructions", ["avx2", "avx512"])
def test_every_instruction_set_gives_the_same(instructions: str, dtype: str) -> None:
    result = assign_with(instructions, dtype)
    if "one that this machine runs" in result.stderr:
        pytest.skip(f"this machine does not run {instructions}")
    assert result.stderr.split() == [instructions, "False"]
    assert result.stdout == assign_with("baseline", dtype).stdout != ""


@needs_compiled_module
def test_an_unknown_instruction_set_is_refused() -> None:
    result = assign_with("sse9")
    assert result.returncode != 0
    assert "MASKFORMER_FAST_INSTRUCTION_SET: expected baseline, avx2 or avx512" in result.stderr
    assert "got sse9" in result.stderr
