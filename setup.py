"""Builds maskformer_fast/_C with CMake; everything else is in pyproject.toml.

Environment: MASKFORMER_FAST_CUDA=auto|on|off, MAX_JOBS (compilers at a time), CXX, CUDACXX, and
CUDAARCHS (80-real;90) or TORCH_CUDA_ARCH_LIST (8.0;9.0+PTX): see cmake/cuda.cmake.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).parent.resolve()


def cuda_option() -> str:
    """The value of MASKFORMER_FAST_CUDA, checked."""
    option = os.environ.get("MASKFORMER_FAST_CUDA", "auto").lower()
    if option not in ("auto", "on", "off"):
        sys.exit(f"MASKFORMER_FAST_CUDA: expected auto, on or off, got {option!r}")
    if option == "on" and shutil.which(os.environ.get("CUDACXX", "nvcc")) is None:
        sys.exit("MASKFORMER_FAST_CUDA=on: nvcc was not found; put it on PATH or set CUDACXX")
    return option


class CMakeBuild(build_ext):
    """Configures and builds in `build_temp`; the module lands where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        configure = [
            *("cmake", "--fresh", "-S", SOURCE, "-B", build, "-G", "Ninja"),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={module.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DMASKFORMER_FAST_CUDA={cuda_option()}",
            f"-DMASKFORMER_FAST_VERSION={self.distribution.get_version()}",
        ]
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count())
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", build, "--parallel", jobs], check=True)
        except FileNotFoundError as error:
            sys.exit(f"maskformer-fast: {error.filename} was not found; `pip install .` brings it")
        except subprocess.CalledProcessError:
            sys.exit(
                "maskformer-fast: the C++ part did not build; the first error above says why."
                " It needs a C++17 compiler (Debian, Ubuntu: apt install g++) and the headers"
                " of this Python (apt install python3-dev)."
            )


setup(ext_modules=[Extension("maskformer_fast._C", [])], cmdclass={"build_ext": CMakeBuild})
