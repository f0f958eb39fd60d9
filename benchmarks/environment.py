"""Where a benchmark ran: hardware, versions, commit. No name of a host or a user."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from maskformer_fast.ops.registry import compiled_module

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTIONS = (
    "maskformer-fast",
    "torch",
    "triton",
    "numpy",
    "scipy",
    "transformers",
    "lapx",
    "torch-linear-assignment",
    "pytest-benchmark",
)


def environment(device: torch.device) -> dict[str, Any]:
    return {
        "device": device_name(device),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "instruction_set": _instruction_set(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version for name in DISTRIBUTIONS if (version := _version(name))},
        "commit": _commit(),
    }


def device_name(device: torch.device) -> str:
    """The model of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _instruction_set() -> str | None:
    try:
        return compiled_module().instruction_set()
    except ImportError:
        return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout, with a + where files differ from it; None outside of git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
