"""Every CUDA source compiled by nvcc: registers, spills and shared memory, with no GPU needed.

`pytest tests/test_cuda_build.py -s` prints a line for every kernel.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
CHECKS = sorted((ROOT / "tests/emulation/checks").glob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_86", "sm_90")  # the oldest, one with little shared memory, the newest
STATIC_SHARED = 2048  # bytes of a block: kStaticShared of csrc/cuda/device.cuh
FLAGS = (
    *("-std=c++17", "-O3", "-DNDEBUG", "-Xptxas", "-v", "-I", ROOT / "csrc", "-I", ROOT / "tests"),
    '-DMASKFORMER_CUDA_ARCHITECTURES="a test"',
)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


class Kernel(NamedTuple):
    name: str
    registers: int
    stack: int
    spilled: int  # bytes, stores and loads
    shared: int

    def __str__(self) -> str:
        return (
            f"{self.registers:4} registers  {self.spilled:4} B spilled  {self.stack:4} B stack"
            f"  {self.shared:6} B static shared  {self.name}"
        )


def kernels_of(text: str) -> list[Kernel]:
    """What ptxas -v says of every kernel."""
    kernels = []
    for entry in text.split("Compiling entry function ")[1:]:
        name = entry.split("'")[1]
        own = entry[entry.index(f"Function properties for {name}\n") :]
        found = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", own
        )
        registers = re.search(r"Used (\d+) registers", own)
        assert found is not None and registers is not None, entry
        stack, stores, loads = map(int, found.groups())
        shared = re.search(r"(\d+) bytes smem", own)
        kernels.append(
            Kernel(
                demangled(name),
                int(registers[1]),
                stack,
                stores + loads,
                int(shared[1]) if shared else 0,
            )
        )
    return kernels


def demangled(name: str) -> str:
    if shutil.which("c++filt") is None:
        return name
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    return text.strip().replace("(anonymous namespace)::", "").replace("maskformer::cuda::", "")


def test_reads_what_ptxas_says() -> None:
    text = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4fillPf' for 'sm_80'
ptxas info    : Function properties for _Z4fillPf
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 28 registers, used 1 barriers, 16 bytes stack, 4096 bytes smem, 416 bytes cmem
ptxas info    : Compiling entry function '_Z5emptyv' for 'sm_80'
ptxas info    : Function properties for _Z5emptyv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 4 registers, used 0 barriers, 352 bytes cmem[0]
"""
    (fill, empty) = kernels_of(text)
    assert fill[1:] == (28, 16, 12, 4096)
    assert empty[1:] == (4, 0, 0, 0)


def compiled(source: Path, architecture: str, folder: Path) -> str:
    """What nvcc and ptxas print; there may be no warning in it."""
    result = subprocess.run(
        ["nvcc", "-cubin", f"-arch={architecture}", *FLAGS, "-o", folder / "cubin", source],
        capture_output=True,
        text=True,
    )
    text = result.stdout + result.stderr
    assert result.returncode == 0 and "warning" not in text, text
    return text


@needs_nvcc
@pytest.mark.parametrize("source", CHECKS, ids=lambda source: source.name)
def test_what_the_emulator_accepts_is_cuda(source: Path, tmp_path: Path) -> None:
    assert kernels_of(compiled(source, "sm_80", tmp_path))


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_compiles_without_spills(source: Path, architecture: str, tmp_path: Path) -> None:
    kernels = kernels_of(compiled(source, architecture, tmp_path))
    assert bool(kernels) == ("__global__" in source.read_text())
    print(f"\n{source.name}, {architecture}", *kernels, sep="\n")
    for kernel in kernels:
        assert kernel.spilled == 0, kernel
        assert kernel.shared <= STATIC_SHARED, kernel
