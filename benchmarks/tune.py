"""Find the tiles of the Triton kernels on this GPU, and write them to the kernels' table.

python benchmarks/tune.py                 all ops, into maskformer_fast/kernels/configs.json
python benchmarks/tune.py mask_loss       one op
python benchmarks/tune.py --table new.json

The results of the workloads below are first compared with the reference. Then, for every kernel and
class of sizes that they use: from the tile in the table, one block size after the other is halved
and doubled, warps, stages and register limits too, and what is faster by more than MARGIN stays.
The time is that of the class's own kernels, in all workloads that use it. What does not compile,
does not fit or gives another result is passed over. The table is rewritten after every class, so
that an interrupted run keeps what it found, and the next one goes on from there.

stdout is data: class, time before and after, tile. stderr is log. The workloads are the shapes of
the goals in docs/kernels, B = 16, Q = 100, C = 256 and a grid of 160 x 160.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import inputs
import torch
from torch import Tensor

from maskformer_fast import Targets, ops
from maskformer_fast.kernels import launch
from maskformer_fast.kernels.launch import Config, using

MARGIN = 0.02  # of the time: less is noise
REPEATS = 30
HEAD_START = 10**7  # cycles, some 5 ms, by which the host is ahead of the GPU: gaps are not timed
REGISTERS = 16  # a step of their limit
MOST = {"num_warps": 16, "num_stages": 6}
DIFFERENCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
    torch.float16: 4e-3,
}  # of the largest value
L, B, Q, K, C, GRID, SIZE = 6, 16, 100, 150, 256, (160, 160), (640, 640)
TARGETS = (20, 60)  # few and many, in matching_cost
WIDE = 320  # channels, more than matching_cost keeps at hand
UNALIGNED = 250  # channels, which 16 does not divide
HALF = "bfloat16"

Workload = Callable[[str], tuple[Tensor, ...]]  # results by a backend
Name = tuple[str, str]  # of a kernel and a class of sizes
Clock = Callable[[Workload, Name], float]  # milliseconds of a class's kernels in a call


class Different(Exception):
    """A result is not the expected one."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("ops", nargs="*", metavar="op", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--table", type=Path, default=launch.TABLE, help="file to write")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.ops) - set(WORKLOADS))
    if unknown:
        parser.error(f"op: expected some of {', '.join(WORKLOADS)}; got {', '.join(unknown)}")
    if not torch.cuda.is_available():
        parser.error("torch sees no NVIDIA GPU to time the kernels on")
    for op in arguments.ops or WORKLOADS:
        tune(list(WORKLOADS[op](torch.device("cuda"))), own_time, arguments.table)
    return 0


# --- search -----------------------------------------------------------------------------------


def tune(workloads: Sequence[Workload], clock: Clock, path: Path) -> None:
    """Improve every class of sizes that the workloads use, in the table at `path`."""
    expected = [workload("triton") for workload in workloads]
    for got, workload in zip(expected, workloads, strict=True):
        check(got, workload("reference"))
    architecture = launch.architecture(expected[0][0].device)
    with ExitStack() as found:  # what was found stays in use
        for config in tiles(path, architecture):
            found.enter_context(using(config))
        for (name, size_class), users in users_of(workloads).items():

            def milliseconds(
                candidate: Config, users: list[int] = users, key: Name = (name, size_class)
            ) -> float:
                with using(candidate):
                    for user in users:
                        check(workloads[user]("triton"), expected[user])
                    return sum(clock(workloads[user], key) for user in users)

            config = launch.configuration(name, size_class, expected[0][0].device)
            before = milliseconds(config)
            best, after = search(config, before, milliseconds)
            found.enter_context(using(best))
            write(best, architecture, path)
            print(f"{name} {size_class}: {before:.4f} ms -> {after:.4f} ms {best.entry()}")


def tiles(path: Path, architecture: str) -> Iterator[Config]:
    """Those of the table at `path`, where it exists."""
    if path.exists():
        for name, classes in json.loads(path.read_text(encoding="utf-8"))[architecture].items():
            for size_class, entry in classes.items():
                yield Config.from_entry(name, size_class, entry)


@contextmanager
def noticing(started: Callable[[Config, Callable[[], None]], None]) -> Iterator[None]:
    """Inside, `started` gets the configuration of every launch, and a function that launches."""
    start = launch.start

    def notice(kernel: Any, grid: Any, config: Config, *rest: Any) -> None:
        started(config, lambda: start(kernel, grid, config, *rest))

    launch.start = notice
    try:
        yield
    finally:
        launch.start = start


def users_of(workloads: Sequence[Workload]) -> dict[Name, list[int]]:
    """The classes of sizes that calls start kernels of, and which workloads do."""
    users: dict[Name, list[int]] = {}
    for index, workload in enumerate(workloads):
        used: dict[Name, None] = {}

        def note(config: Config, go: Callable[[], None], used: dict[Name, None] = used) -> None:
            used[config.name, config.size_class] = None
            go()

        with noticing(note):
            workload("triton")
        for key in used:
            users.setdefault(key, []).append(index)
    return users


def own_time(workload: Workload, key: Name) -> float:
    """Milliseconds that the kernels of a class take in a call: the median over REPEATS."""
    events: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = []

    def timed(config: Config, go: Callable[[], None]) -> None:
        if (config.name, config.size_class) != key:
            go()
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        go()
        end.record()
        events[-1].append((begin, end))

    for _ in range(REPEATS):
        events.append([])
        torch.cuda._sleep(HEAD_START)
        with noticing(timed):
            workload("triton")
        torch.cuda.synchronize()
    return median(sum(begin.elapsed_time(end) for begin, end in call) for call in events)


def search(
    config: Config, milliseconds: float, measure: Callable[[Config], float]
) -> tuple[Config, float]:
    """The fastest tile that steps from `config` lead to, each faster than the one before."""
    seen = [config]
    steps = neighbours(config)
    while (candidate := next(steps, None)) is not None:
        if candidate in seen:
            continue
        seen.append(candidate)
        try:
            found = measure(candidate)
        except Exception as error:  # of Triton's compiler, of the driver, or a wrong result
            reason = str(error).split("\n")[0]
            print(f"  {candidate.entry()}: {type(error).__name__}: {reason}", file=sys.stderr)
            continue
        print(f"  {candidate.entry()}: {found:.4f} ms", file=sys.stderr)
        if found < milliseconds * (1 - MARGIN):
            config, milliseconds, steps = candidate, found, neighbours(candidate)
    return config, milliseconds


def neighbours(config: Config) -> Iterator[Config]:
    """Each block size and the warps doubled and halved; stages, registers by a step."""
    for key, size in config.blocks.items():
        for other in (2 * size, size // 2):
            if other:
                yield replace(config, blocks={**config.blocks, key: other})
    for warps in (2 * config.num_warps, config.num_warps // 2):
        if 0 < warps <= MOST["num_warps"]:
            yield replace(config, num_warps=warps)
    for stages in (config.num_stages + 1, config.num_stages - 1):
        if 0 < stages <= MOST["num_stages"]:
            yield replace(config, num_stages=stages)
    if config.maxnreg is not None:
        for limit in (config.maxnreg + REGISTERS, config.maxnreg - REGISTERS):
            yield replace(config, maxnreg=limit)


def check(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Different, if a result is further from the expected one than rounding explains."""
    for one, other in zip(got, expected, strict=True):
        scale = other.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        difference = ((one - other).abs().max() / scale).item()
        if not difference <= DIFFERENCE[one.dtype]:
            raise Different(f"{difference:.1e} of the largest value apart")


def write(config: Config, architecture: str, path: Path) -> None:
    """Put an entry into the table at `path`, which starts as a copy of the package's."""
    source = path if path.exists() else launch.TABLE
    document = json.loads(source.read_text(encoding="utf-8"))
    document[architecture][config.name][config.size_class] = config.entry()
    path.write_text(as_text(document), encoding="utf-8")


def as_text(document: Mapping[str, Any]) -> str:
    """The table as JSON, one class of sizes a line."""

    def block(parts: Mapping[str, str], indent: int) -> str:
        lines = ",\n".join(f'{" " * (indent + 1)}"{name}": {text}' for name, text in parts.items())
        return f"{{\n{lines}\n{' ' * indent}}}"

    architectures = {}
    for architecture, kernels in document.items():
        names = {}
        for name, classes in kernels.items():
            names[name] = block({c: json.dumps(entry) for c, entry in classes.items()}, 2)
        architectures[architecture] = block(names, 1)
    return block(architectures, 0) + "\n"


# --- workloads --------------------------------------------------------------------------------


def embeddings(
    device: torch.device, dtype: str, t: int, channels: int | None = None
) -> inputs.Embeddings:
    scene = inputs.scene(B, Q, t, K, GRID, SIZE)
    return inputs.embeddings(scene, L, channels or C).to(device, dtype)


def mask_logits_workloads(device: torch.device) -> Iterator[Workload]:
    for dtype, channels in ((HALF, C), (HALF, UNALIGNED), ("float32", C)):
        _, [*_, last], features, _ = embeddings(device, dtype, 20, channels)
        for rows in (Q, 20):
            leaves = [last[:, :rows].requires_grad_(), features.requires_grad_()]
            grad = torch.ones(B, rows, *GRID, device=device, dtype=last.dtype)

            def call(
                backend: str, leaves: list[Tensor] = leaves, grad: Tensor = grad
            ) -> tuple[Tensor, ...]:
                probs = ops.mask_probs(*leaves, backend=backend)
                return probs.detach(), *torch.autograd.grad(probs, leaves, grad)

            yield call


def matching_cost_workloads(device: torch.device) -> Iterator[Workload]:
    wide = embeddings(device, HALF, TARGETS[0], WIDE)
    yield lambda backend: (ops.matching_cost(*wide, backend=backend),)
    overlapping = wide._replace(targets=as_masks(wide.targets))
    yield lambda backend: (ops.matching_cost(*overlapping, backend=backend),)
    for dtype in (HALF, "float32"):
        for t in TARGETS:
            found = embeddings(device, dtype, t)
            yield lambda backend, e=found: (ops.matching_cost(*e, backend=backend),)
            [*_, classes], [*_, queries], features, targets = found
            logits = ops.mask_logits(queries, features)
            arguments = (classes, logits, targets)
            yield lambda backend, a=arguments: (ops.matching_cost_from_logits(*a, backend=backend),)


def as_masks(targets: Targets) -> Targets:
    """The same targets in the form of masks."""
    index = torch.arange(targets.labels.shape[1], device=targets.labels.device)[:, None, None]
    masks = targets.pixels[:, None] == index
    return Targets(targets.labels, targets.num_targets, masks=masks)


def mask_loss_workloads(device: torch.device) -> Iterator[Workload]:
    for layers, t in ((L, 20), (1, 3)):
        scene = inputs.scene(B, t, t, K, GRID, SIZE).to(device)
        logits = scene.mask_logits.repeat(layers, 1, 1, 1).requires_grad_()

        def call(
            backend: str, logits: Tensor = logits, targets: Targets = scene.targets
        ) -> tuple[Tensor, ...]:
            focal, dice = ops.mask_loss(logits, targets, backend=backend)
            gradient = torch.autograd.grad(focal.sum() + dice.sum(), logits)
            return focal.detach(), dice.detach(), *gradient

        yield call


WORKLOADS = {
    "mask_logits": mask_logits_workloads,
    "matching_cost": matching_cost_workloads,
    "mask_loss": mask_loss_workloads,
}


if __name__ == "__main__":
    raise SystemExit(main())
