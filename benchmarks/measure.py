"""How time and memory are measured.

Time is the call's, from the host: what a user waits for. On CUDA the device is waited for before
and after, and a buffer larger than the L2 cache is written in between calls; what is replayed from
a CUDA graph is timed on the device, between two events. A shared machine changes its speed within
seconds, so contenders take turns, and all are warm before the first turn: PyTorch's first calls,
which set up threads and caches, are several times slower.

Memory is the peak above what was in use before the call, results included. On the CPU it is the
high-water mark of resident memory as Linux counts it, reset before the call: all allocators are
seen, PyTorch's and those of C++ and NumPy. What a library keeps from earlier calls is not.
On CUDA it is what PyTorch's allocator counts.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

FEWEST_ROUNDS = 3
FLUSH_BYTES = 256 << 20  # more than any L2 cache


class Effort(NamedTuple):
    """How long to measure."""

    rounds: int  # turns of each contender
    turn: float  # seconds of calls in a turn, at least one call
    patience: float  # seconds of calls after which FEWEST_ROUNDS turns are enough
    warm_up: float  # seconds of calls before the first turn, at least `warm_calls`
    warm_calls: int


FULL = Effort(rounds=7, turn=0.2, patience=5.0, warm_up=0.5, warm_calls=2)
QUICK = Effort(rounds=FEWEST_ROUNDS, turn=0.05, patience=0.0, warm_up=0.1, warm_calls=1)


class Entrant(NamedTuple):
    """A contender: what is timed, how its result compares with ours, and the context of calls."""

    call: Callable[[], Any]
    as_ours: Callable[[Any], Any] = lambda result: result
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    by_events: bool = False  # on CUDA: the device's time between two events, not the host's


def take_turns(
    entrants: Mapping[str, Entrant], device: torch.device, effort: Effort
) -> dict[str, list[float]]:
    """Seconds of every call of every entrant."""
    for entrant in entrants.values():
        _turn(entrant, device, effort.warm_up, effort.warm_calls)
    times: dict[str, list[float]] = {name: [] for name in entrants}
    for finished in range(effort.rounds):
        for name, entrant in entrants.items():
            if finished < FEWEST_ROUNDS or sum(times[name]) < effort.patience:
                times[name] += _turn(entrant, device, effort.turn, 1)
    return times


def _turn(entrant: Entrant, device: torch.device, seconds: float, calls: int) -> list[float]:
    """Seconds of each call; calls until both `seconds` and `calls` are reached."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    with entrant.context():
        while len(times) < calls or time.perf_counter() < end:
            times.append(_time(entrant, device))
    return times


def _time(entrant: Entrant, device: torch.device) -> float:
    if device.type == "cuda":
        torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device).zero_()
        torch.cuda.synchronize(device)
    if entrant.by_events:
        return _time_by_events(entrant.call, device)
    start = time.perf_counter()
    result = entrant.call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed = time.perf_counter() - start
    del result  # freed outside of the time, for everybody
    return elapsed


def _time_by_events(call: Callable[[], Any], device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3  # from milliseconds


def peak_extra_bytes(entrant: Entrant, device: torch.device) -> int | None:
    """Peak memory of one call above what was in use; None where the system does not tell."""
    with entrant.context():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            entrant.call()
            return torch.cuda.max_memory_allocated(device) - before
        with contextlib.suppress(OSError, AttributeError):  # not Linux, or not its C library
            ctypes.CDLL(None).malloc_trim(0)  # free pages would hide what the call allocates
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            before = _high_water_mark()
            entrant.call()
            return _high_water_mark() - before
    return None


def _high_water_mark() -> int:
    """Most bytes of this process that were resident at one time."""
    return next(kibibytes for name, kibibytes in _status() if name == "VmHWM") * 1024


def _status() -> Iterator[tuple[str, int]]:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            yield name, int(value.removesuffix(" kB"))
