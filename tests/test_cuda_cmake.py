"""cmake/cuda.cmake: for which architectures the CUDA part is built; what `on` and `off` mean."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
CUDA_CMAKE = Path(__file__).parents[1] / "cmake/cuda.cmake"
PROJECT = f"""
cmake_minimum_required(VERSION 3.20)
project(architectures LANGUAGES CXX)
include({CUDA_CMAKE.as_posix()})
message(STATUS "with CUDA: ${{MASKFORMER_WITH_CUDA}}, ${{MASKFORMER_CUDA_ARCHITECTURES}}.")
"""
UNSET = ("CUDACXX", "CUDAARCHS", "CUDA_PATH", "CXXFLAGS", "TORCH_CUDA_ARCH_LIST")

pytestmark = pytest.mark.skipif(CMAKE is None, reason="cmake is not installed")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


def configure(folder: Path, option: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "CMakeLists.txt").write_text(PROJECT)
    inherited = {key: value for key, value in os.environ.items() if key not in UNSET}
    return subprocess.run(
        [str(CMAKE), "-S", folder, "-B", folder / "build", f"-DMASKFORMER_FAST_CUDA={option}"],
        capture_output=True,
        text=True,
        env=inherited | environment,
    )


@needs_nvcc
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "sm_80 sm_86 sm_89 sm_90 compute_90"),
        ({"TORCH_CUDA_ARCH_LIST": "8.0;8.6 9.0a,9.0+PTX"}, "sm_80 sm_86 sm_90a sm_90 compute_90"),
        ({"CUDAARCHS": "86-real;90", "TORCH_CUDA_ARCH_LIST": "8.0"}, "sm_86 sm_90 compute_90"),
    ],
)
def test_architectures_come_from_the_environment(
    environment: dict[str, str], expected: str, tmp_path: Path
) -> None:
    result = configure(tmp_path, "auto", **environment)
    assert f"with CUDA: ON, {expected}." in result.stdout, result.stdout + result.stderr


@needs_nvcc
def test_a_list_that_is_not_understood_is_an_error(tmp_path: Path) -> None:
    result = configure(tmp_path, "auto", TORCH_CUDA_ARCH_LIST="8.0;Ampere")
    assert result.returncode != 0
    assert "expected items like 8.0 or 9.0+PTX, got Ampere" in " ".join(result.stderr.split())


def test_off_looks_for_nothing(tmp_path: Path) -> None:
    result = configure(tmp_path, "off")
    assert "with CUDA: OFF, ." in result.stdout and "CUDA compiler" not in result.stdout


@pytest.mark.parametrize("option", ["auto", "on"])
def test_without_nvcc_auto_builds_for_the_cpu_and_on_is_an_error(
    option: str, tmp_path: Path
) -> None:
    result = configure(tmp_path, option, CUDACXX="/nowhere/nvcc")
    if option == "auto":
        assert "nvcc was not found; building for the CPU only" in result.stdout
        assert "with CUDA: OFF, ." in result.stdout
    else:
        assert result.returncode != 0
        assert "MASKFORMER_FAST_CUDA=on: no nvcc that works" in " ".join(result.stderr.split())
