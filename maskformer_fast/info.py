"""What is installed here, which backends run, and why the others do not."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

import maskformer_fast
from maskformer_fast.ops.registry import BACKENDS, backends, compiled_module


def info() -> str:
    """Versions, compiled module, devices, and the table of ops and backends, as text."""
    rows = [
        ("maskformer_fast", maskformer_fast.__version__),
        ("python", platform.python_version()),
        *((name, _version(name)) for name in ("torch", "triton", "numpy")),
        ("compiled module", _compiled_module()),
        ("CUDA devices", _cuda_devices()),
    ]
    return "\n".join([*(f"{name:16}  {value}" for name, value in rows), "", *_backend_table()])


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _compiled_module() -> str:
    try:
        module = compiled_module()
    except ImportError as error:
        return f"none ({error})"
    cuda = f"CUDA for {', '.join(module.cuda_architectures())}"
    cuda = cuda if module.built_with_cuda() else "without CUDA"
    return f"{module.version}, {module.instruction_set()} instructions, {cuda}"


def _cuda_devices() -> str:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "none"


def _backend_table() -> list[str]:
    """One row an op, one column a backend: yes, or the number of the note that says why not."""
    notes: dict[str, str] = {}  # reason -> its mark

    def cell(reason: str | None) -> str:
        return "yes" if reason is None else notes.setdefault(reason, f"no [{len(notes) + 1}]")

    table = [["", *BACKENDS]]
    table += [[op, *(cell(row[name]) for name in BACKENDS)] for op, row in backends().items()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    return [*lines, "", *(f"{mark.removeprefix('no ')} {why}" for why, mark in notes.items())]
