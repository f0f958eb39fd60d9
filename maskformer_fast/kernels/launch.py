"""How the Triton kernels are started, and with which tiles.

A kernel has a name, "<file>.<kernel>", and its launcher sorts every call into one of a few classes
of sizes. configs.json holds a configuration for each architecture, name and class: no call ever
measures or searches.

    config = configuration("mask_logits.product", "half", features.device)
    grid = (triton.cdiv(pixels, config["BLOCK_P"]), images)
    launch(product, grid, config, queries, features, result, pixels, SIGMOID=True)
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TABLE = Path(__file__).with_name("configs.json")
ARCHITECTURES = ("sm_80", "sm_90")  # a GPU uses the newest that is not newer than itself
MOST_PROGRAMS = (2**31 - 1, 65535, 65535)  # along each axis of a grid, in CUDA
INTERPRETED = "sm_80"  # whose tiles calls on CPU tensors use, under TRITON_INTERPRET=1

_replaced: dict[tuple[str, str], Config] = {}  # by `using`
_interpreter = threading.Lock()  # it keeps the program's place in global variables


@dataclass(frozen=True)
class Config:
    """The tile of one kernel for one class of sizes."""

    name: str  # "<file>.<kernel>"
    size_class: str
    blocks: dict[str, int]  # the kernel's constexpr block sizes
    num_warps: int
    num_stages: int
    maxnreg: int | None = None  # registers of a thread, at most

    def __getitem__(self, block: str) -> int:
        return self.blocks[block]

    @classmethod
    def from_entry(cls, name: str, size_class: str, entry: dict[str, int]) -> Config:
        """From an entry of configs.json."""
        blocks = {key: size for key, size in entry.items() if key.isupper()}
        launch_options = {key: number for key, number in entry.items() if key.islower()}
        return cls(name, size_class, blocks, **launch_options)

    def entry(self) -> dict[str, int]:
        """The entry of configs.json."""
        limit = {} if self.maxnreg is None else {"maxnreg": self.maxnreg}
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages, **limit}


@functools.cache
def table() -> dict[str, dict[str, dict[str, Config]]]:
    """All configurations, by architecture, name and class of sizes."""
    document = json.loads(TABLE.read_text(encoding="utf-8"))
    return {
        architecture: {
            name: {c: Config.from_entry(name, c, entry) for c, entry in classes.items()}
            for name, classes in kernels.items()
        }
        for architecture, kernels in document.items()
    }


@functools.cache
def architecture(device: torch.device) -> str:
    """The entry of ARCHITECTURES whose configurations `device` uses."""
    if device.type != "cuda":
        return INTERPRETED
    capability = torch.cuda.get_device_capability(device)
    known = [name for name in ARCHITECTURES if divmod(int(name[3:]), 10) <= capability]
    if not known:
        raise RuntimeError(f"the Triton kernels need sm_80 or newer; got {capability}")
    return known[-1]


def configuration(name: str, size_class: str, device: torch.device) -> Config:
    """The tile of a kernel for a class of sizes on `device`."""
    replaced = _replaced.get((name, size_class))
    return replaced or table()[architecture(device)][name][size_class]


@contextlib.contextmanager
def using(config: Config) -> Iterator[None]:
    """Calls inside, of all threads, use `config` instead of the table's: for tests and tuning."""
    key = (config.name, config.size_class)
    before = _replaced.get(key)
    _replaced[key] = config
    try:
        yield
    finally:
        if before is None:
            del _replaced[key]
        else:
            _replaced[key] = before


def aligned(*arguments: Tensor | int) -> bool:
    """Whether what Triton knows of these sizes, addresses and strides lets it load vectors.

    It knows of each whether 16 divides it; of a stride also whether it is 1.
    """
    for argument in arguments:
        if isinstance(argument, Tensor):
            numbers = [stride for stride in argument.stride() if stride != 1]
            numbers.append(argument.data_ptr())
        else:
            numbers = [argument]
        if any(number % 16 for number in numbers):
            return False
    return True


def launch(
    kernel: Any, grid: tuple[int, ...], config: Config, *arguments: Any, **constants: Any
) -> None:
    """Start `kernel` on the current stream of its tensors' device; nothing for an empty grid.

    The first call with new dtypes, options or divisibility of sizes compiles: before a graph is
    captured, the same calls must have run once.

    grid       programs along each axis
    arguments  of the kernel, in its order; the first tensor tells the device
    constants  its constexpr parameters besides the blocks of `config`

    Raises ValueError where the grid has more programs than MOST_PROGRAMS along an axis.
    """
    if 0 in grid:
        return
    if any(programs > most for programs, most in zip(grid, MOST_PROGRAMS, strict=False)):
        raise ValueError(f"{config.name}: {grid} programs; a GPU takes at most {MOST_PROGRAMS}")
    device = next(x.device for x in arguments if isinstance(x, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else _interpreter:
        start(kernel, grid, config, arguments, constants)


def start(
    kernel: Any,
    grid: tuple[int, ...],
    config: Config,
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
) -> None:
    """The launch itself, which tests replace by a compilation for a GPU that is not there."""
    kernel[grid](*arguments, **options(config, constants))


def options(config: Config, constants: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a launch."""
    return {
        **constants,
        **config.entry(),
        "enable_fp_fusion": True,  # a multiply-add rounds once; Triton's default is changing
    }
