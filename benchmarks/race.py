"""A race: one step at one shape, by every backend and every peer, on the same inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from measure import FULL, QUICK, Entrant, peak_extra_bytes, take_turns

from maskformer_fast import backends, use_backend
from maskformer_fast.ops.registry import AUTO_ORDER

AUTO = "auto"
COMPILED = "torch.compile"
GRAPH = "in a CUDA graph"  # what a user gets, captured once and replayed
WARM_UP_CALLS = 3  # before a capture


class Unavailable(Exception):
    """Why a contender does not take part."""


@dataclass(frozen=True)
class Settings:
    """What was asked for on the command line, and the rows of those that were not timed."""

    device: torch.device
    quick: bool
    backends: tuple[str, ...]
    untimed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def contending_backends(self) -> list[str]:
        graph = [GRAPH] if self.device.type == "cuda" else []
        possible = (*AUTO_ORDER.get(self.device.type, ()), *graph, "reference", AUTO)
        return [name for name in possible if name in self.backends or not self.backends]


class Outcome(NamedTuple):
    """What came of a contender: times, or what was in the way."""

    times: list[float]  # seconds
    peak: int | None = None  # bytes
    check: str = ""  # how far the result is from the reference's
    obstacle: Exception | None = None


@dataclass(frozen=True, eq=False)
class Race:
    """One step at one shape.

    title       of the step
    shape       NamedTuple whose fields label the row
    ops         names of the registered ops that `ours` runs
    inputs      of `ours` and, to prepare a call, of every peer
    ours        what is timed under every backend; under "reference" its result is what is expected
    peers       name -> function of the inputs that returns an Entrant; ImportError or Unavailable
                where there is none
    baseline    the peer that every time is compared with
    difference  (result, expected) -> how far they are apart, as text; AssertionError if too far
    traffic     bytes that any implementation reads and writes: inputs and results, once
    pixels      of one image, for the plot of time against size
    capturable  whether a CUDA graph can hold `ours`; not where it brings results to the host
    """

    settings: Settings
    title: str
    shape: tuple[Any, ...]
    ops: tuple[str, ...]
    inputs: tuple[Any, ...]
    ours: Callable[..., Any]
    peers: Mapping[str, Callable[..., Entrant]]
    baseline: str
    difference: Callable[[Any, Any], str]
    traffic: int | None = None
    pixels: int | None = None
    capturable: bool = True

    def record(self, contender: str, benchmark: Any) -> None:
        """Hand the contender's times to pytest-benchmark, or skip with the reason why not."""
        if contender == AUTO and self._default != AUTO:
            pytest.skip(f"it is {self._default!r}")
        outcome = self._outcomes[contender]
        row = {
            "case": Path(benchmark.fullname.split("::")[0]).stem,
            "title": self.title,
            "shape": describe(self.shape),
            "contender": contender,
            "kind": "peer" if contender in self.peers else "backend",
            "default": contender == self._default,
            "baseline": contender == self.baseline,
            "traffic_bytes": self.traffic,
            "pixels": self.pixels,
        }
        if outcome.obstacle is not None:
            absent = isinstance(outcome.obstacle, Unavailable)
            reason = str(outcome.obstacle) if absent else f"failed: {outcome.obstacle}"
            self.settings.untimed.append(row | {"reason": reason.split("\n")[0]})
            if absent or contender in self.peers:
                pytest.skip(reason)
            raise outcome.obstacle
        benchmark.group = f"{self.title}, {describe(self.shape)}"
        benchmark.extra_info.update(row, peak_bytes=outcome.peak, check=outcome.check)
        replay(outcome.times, benchmark)

    @functools.cached_property
    def _default(self) -> str:
        """The backend that a user gets; "auto" where it is not the same for all the ops."""
        table = backends()
        order = (*AUTO_ORDER.get(self.settings.device.type, ()), "reference")
        chosen = {next(name for name in order if table[op][name] is None) for op in self.ops}
        return chosen.pop() if len(chosen) == 1 else AUTO

    @functools.cached_property
    def _outcomes(self) -> dict[str, Outcome]:
        with use_backend("reference"):
            expected = self.ours(*self.inputs)
        entrants: dict[str, Entrant] = {}
        outcomes: dict[str, Outcome] = {}
        mixed = self._default == AUTO
        ours = [name for name in self.settings.contending_backends if mixed or name != AUTO]
        for name in (*ours, *self.peers):
            try:
                entrant = self._entrant(name)
                with entrant.context():
                    check = self.difference(entrant.as_ours(entrant.call()), expected)
                entrants[name], outcomes[name] = entrant, Outcome([], check=check)
            except Exception as error:
                outcomes[name] = Outcome([], obstacle=error)
        effort = QUICK if self.settings.quick else FULL
        for name, times in take_turns(entrants, self.settings.device, effort).items():
            peak = peak_extra_bytes(entrants[name], self.settings.device)
            outcomes[name] = outcomes[name]._replace(times=times, peak=peak)
        return outcomes

    def _entrant(self, name: str) -> Entrant:
        if name == COMPILED and self.settings.quick:
            raise Unavailable("left out of --quick: compiling takes up to minutes")
        if name in self.peers:
            try:
                return self.peers[name](*self.inputs)
            except ImportError as error:
                raise Unavailable("not installed") from error
        call = functools.partial(self.ours, *self.inputs)
        if name == GRAPH:
            if not self.capturable:
                raise Unavailable("it brings results to the host")
            return Entrant(captured(call), by_events=True)
        table = backends()
        for op in self.ops if name != AUTO else ():
            if table[op][name] is not None:
                raise Unavailable(f"{op}: {table[op][name]}")
        return Entrant(call, context=functools.partial(use_backend, name))


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """What replays the kernels of a call; returns its result."""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        result = call()

    def replay_graph() -> Any:
        graph.replay()
        return result

    return replay_graph


def describe(shape: tuple[Any, ...]) -> str:
    """A NamedTuple as text: B=2 grid=160x160. Fields that are at their default are left out."""
    usual = shape._field_defaults  # type: ignore[attr-defined]
    parts = shape._asdict()  # type: ignore[attr-defined]
    parts = {name: x for name, x in parts.items() if name not in usual or usual[name] != x}
    sizes = {name: "x".join(map(str, v)) for name, v in parts.items() if isinstance(v, tuple)}
    return " ".join(f"{name}={value}" for name, value in (parts | sizes).items())


# --- the clock of pytest-benchmark ------------------------------------------------------------

_now = 0.0


def clock() -> float:
    """pytest-benchmark's timer here. It times one contender after the other, but they have taken
    turns before: their times are handed over by a clock that advances by them."""
    return _now


def replay(times: list[float], benchmark: Any) -> None:
    """Let `benchmark` see a function that takes these times on `clock`."""
    remaining = iter(times)

    def advance() -> None:
        global _now
        _now += next(remaining)

    benchmark.pedantic(advance, rounds=len(times))
