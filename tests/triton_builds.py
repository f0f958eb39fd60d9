"""Compiles the Triton kernels as their launchers start them, for a GPU that is not there.

    python tests/triton_builds.py sm_90 mask_logits     # a line of JSON for every kernel compiled

Runs outside pytest's process, where Triton interprets. The launchers get CPU tensors;
their launches are replaced by Triton's own compilation of the same call, which `ptxas -v` reads.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton_calls import CALLS, DTYPES

from maskformer_fast.kernels import launch

INSTRUCTIONS = ("wgmma.mma_async", "mma.sync", "cp.async", "ex2.approx", "lg2.approx", "rcp.approx")


class Offline:
    """What Triton asks of a driver in order to compile."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def built(architecture: str, op: str) -> Iterator[dict[str, Any]]:
    """Every kernel that the calls of triton_calls.py start."""
    triton.runtime.driver.set_active(Offline(int(architecture[3:])))
    found: dict[str, dict[str, Any]] = {}

    def compile_instead(kernel, grid, config, arguments, constants):  # type: ignore[no-untyped-def]
        binary = kernel.warmup(*arguments, grid=grid, **launch.options(config, constants))
        if binary.hash not in found:
            dtypes = [str(x.dtype)[6:] for x in arguments if isinstance(x, torch.Tensor)]
            found[binary.hash] = {
                "kernel": config.name,
                "size_class": config.size_class,
                "config": config.entry(),
                "dtypes": dtypes,
                "constants": constants,
                **resources(binary, architecture),
            }

    launch.start = compile_instead
    launch.architecture = lambda _: architecture
    for dtype in DTYPES:
        CALLS[op](dtype)
    yield from found.values()


def resources(binary: Any, architecture: str) -> dict[str, Any]:
    """Registers, spills, shared memory and instructions of a compiled kernel."""
    ptx = binary.asm["ptx"]
    gpu = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert gpu is not None and gpu[1].startswith(architecture)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [get_ptxas(int(architecture[3:])).path, "-v", f"--gpu-name={gpu[1]}", source]
        result = subprocess.run([*command, "-o", f"{folder}/cubin"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    registers = re.search(r"Used (\d+) registers", result.stderr)
    assert spills is not None and registers is not None, result.stderr
    return {
        "registers": int(registers[1]),
        "spilled": int(spills[1]) + int(spills[2]),  # bytes
        "shared": binary.metadata.shared,  # bytes
        "instructions": {name: ptx.count(name) for name in INSTRUCTIONS},
    }


if __name__ == "__main__":
    for kernel in built(*sys.argv[1:]):
        print(json.dumps(kernel), flush=True)
