"""Every Triton kernel with every configuration, compiled for GPUs that are not there: registers,
spills, shared memory, tensor-core instructions.

`pytest tests/test_triton_build.py -s` prints a line for every kernel.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from triton_calls import CALLS

from maskformer_fast.kernels.launch import ARCHITECTURES, table

TESTS = Path(__file__).parent
SHARED = {
    "sm_80": 99 << 10,
    "sm_90": 227 << 10,
}  # most bytes of a block; sm_86 has the tiles of sm_80
REGISTERS = 1 << 16  # of a multiprocessor, and so at most of a block
MATRIX_INSTRUCTION = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async"}
PRODUCTS = {
    "mask_logits.product",
    "mask_logits.product_over_pixels",
    "matching_cost.sums",
}  # kernels that use tensor cores for half inputs

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_op = pytest.mark.parametrize("op", CALLS)


@functools.cache
def built(architecture: str, op: str) -> list[dict[str, Any]]:
    result = subprocess.run(
        [sys.executable, TESTS / "triton_builds.py", architecture, op],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def line(kernel: dict[str, Any]) -> str:
    counts = ", ".join(f"{n} {name}" for name, n in kernel["instructions"].items() if n)
    return (
        f"{kernel['registers']:4} registers  {kernel['shared']:6} B shared"
        f"  {kernel['spilled']:4} B spilled  {kernel['kernel']} {kernel['size_class']}"
        f" {kernel['dtypes'][0]} {kernel['constants']} {kernel['config']}: {counts}"
    )


@each_architecture
@each_op
def test_fits_the_gpu_without_spills(op: str, architecture: str) -> None:
    kernels = built(architecture, op)
    print(f"\n{architecture}", *map(line, kernels), sep="\n")
    for kernel in kernels:
        threads = 32 * kernel["config"]["num_warps"]
        assert kernel["spilled"] == 0, line(kernel)
        assert kernel["shared"] <= SHARED[architecture], line(kernel)
        assert kernel["registers"] * threads <= REGISTERS, line(kernel)


@each_architecture
@each_op
def test_half_products_run_on_tensor_cores_and_float32_ones_do_not(
    op: str, architecture: str
) -> None:
    for kernel in built(architecture, op):
        found = kernel["instructions"]
        if kernel["kernel"] in PRODUCTS and kernel["dtypes"][0] != "float32":
            assert found[MATRIX_INSTRUCTION[architecture]] > 0, line(kernel)
        else:
            assert found["mma.sync"] == found["wgmma.mma_async"] == 0, line(kernel)


@each_architecture
@each_op
def test_every_configuration_is_compiled(op: str, architecture: str) -> None:
    compiled = {(k["kernel"], k["size_class"]) for k in built(architecture, op)}
    listed = {
        (name, size_class)
        for name, classes in table()[architecture].items()
        for size_class in classes
        if name.startswith(f"{op}.")
    }
    assert compiled == listed


def test_every_file_of_kernels_is_called() -> None:
    names = {name.split(".")[0] for kernels in table().values() for name in kernels}
    assert names == set(CALLS)
