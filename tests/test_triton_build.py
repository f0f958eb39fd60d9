"""Every Triton kernel in every variant of triton_calls.py, compiled for GPUs that are not there:
registers, spills, shared memory, occupancy, tensor-core instructions.

`pytest tests/test_triton_build.py -s` prints a line for every kernel.
"""

from __future__ import annotations

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
SHARED_OF_ALL = {"sm_80": 164 << 10, "sm_90": 228 << 10}  # of a multiprocessor's blocks
RESERVED = 1 << 10  # bytes of shared memory that every block takes besides
REGISTERS, MOST_BLOCKS, MOST_WARPS = 1 << 16, 32, 64  # of a multiprocessor
LEAST_BLOCKS = {  # on a multiprocessor, as docs/kernels/ counts on
    "sm_80": {
        "mask_logits.product half_few_rows none": 2,
        "mask_logits.product half_few_rows sigmoid": 2,
        "mask_logits.product_over_pixels half_few_rows": 3,
        "mask_loss.visit many": 19,
        "matching_cost.sums features_half_many": 2,
        "matching_cost.sums logits_half_few": 2,
    },
    "sm_90": {
        "mask_logits.product half none": 2,
        "mask_logits.product half sigmoid": 2,
        "mask_logits.product half_few_rows none": 3,
        "mask_logits.product half_few_rows sigmoid": 3,
        "mask_logits.product_over_pixels half": 2,
        "mask_logits.product_over_pixels half_few_rows": 3,
        "mask_loss.visit many": 18,
        "matching_cost.sums features_half_few": 2,
        "matching_cost.sums features_half_many": 2,
        "matching_cost.sums logits_half_few": 2,
    },
}
MATRIX_INSTRUCTION = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async"}
PRODUCTS = {
    "mask_logits.product",
    "mask_logits.product_over_pixels",
    "matching_cost.sums",
}  # kernels that use tensor cores for half inputs

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_op = pytest.mark.parametrize("op", CALLS)


def built(architecture: str, op: str) -> list[dict[str, Any]]:
    result = subprocess.run(
        [sys.executable, TESTS / "triton_builds.py", architecture, op],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def name_of(kernel: dict[str, Any]) -> str:
    """Kernel, class of sizes and, where it has one, epilogue."""
    epilogue = kernel["constants"].get("EPILOGUE", "")
    return f"{kernel['kernel']} {kernel['size_class']} {epilogue}".strip()


def blocks_of(kernel: dict[str, Any], architecture: str) -> int:
    """How many blocks a multiprocessor holds at once: a warp's registers come by 256."""
    warps = kernel["config"]["num_warps"]
    by_registers = REGISTERS // (-(-32 * kernel["registers"] // 256) * 256 * warps)
    by_shared = SHARED_OF_ALL[architecture] // (kernel["shared"] + RESERVED)
    return min(by_registers, by_shared, MOST_WARPS // warps, MOST_BLOCKS)


def line(kernel: dict[str, Any], architecture: str) -> str:
    counts = ", ".join(f"{n} {name}" for name, n in kernel["instructions"].items() if n)
    return (
        f"{kernel['registers']:4} registers  {kernel['shared']:6} B shared"
        f"  {blocks_of(kernel, architecture):2} blocks  {kernel['spilled']:4} B spilled"
        f"  {name_of(kernel)} {kernel['dtypes'][0]} {kernel['constants']} {kernel['config']}:"
        f" {counts}"
    )


@each_architecture
@each_op
def test_every_variant_fits_the_gpu_and_uses_the_units_it_should(
    op: str, architecture: str
) -> None:
    """No spills, the blocks on a multiprocessor that the estimates count on, and tensor cores for
    products of half inputs alone."""
    kernels = built(architecture, op)
    print(f"\n{architecture}", *(line(kernel, architecture) for kernel in kernels), sep="\n")
    least = LEAST_BLOCKS[architecture]
    for kernel in kernels:
        which = line(kernel, architecture)
        assert kernel["spilled"] == 0, which
        assert kernel["shared"] <= SHARED[architecture], which
        assert blocks_of(kernel, architecture) >= least.get(name_of(kernel), 1), which
        found = kernel["instructions"]
        if kernel["kernel"] in PRODUCTS and kernel["dtypes"][0] != "float32":
            assert found[MATRIX_INSTRUCTION[architecture]] > 0, which
        else:
            assert found["mma.sync"] == found["wgmma.mma_async"] == 0, which
    assert {name for name in least if name.startswith(f"{op}.")} <= set(map(name_of, kernels))
    assert classes_of(kernels) == {
        (name, size_class)
        for name, classes in table()[architecture].items()
        for size_class in classes
        if name.startswith(f"{op}.")
    }


def classes_of(kernels: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(kernel["kernel"], kernel["size_class"]) for kernel in kernels}


def test_every_file_of_kernels_is_called() -> None:
    names = {name.split(".")[0] for kernels in table().values() for name in kernels}
    assert names == set(CALLS)
