"""Find the tiles of the Triton kernels on this GPU, and write them to the kernels' table.

python benchmarks/tune.py                 all ops, into maskformer_fast/kernels/configs.json
python benchmarks/tune.py mask_loss       one op
python benchmarks/tune.py --table new.json

For every kernel and class of sizes that the workloads below use: from the tile in the table, one
block size after the other is halved and doubled, warps and stages too, and what is faster by more
than MARGIN stays. What does not compile, does not fit or gives another result is passed over.
The table is rewritten after every class, so that an interrupted run keeps what it found.

stdout is data: class, time before and after, tile. stderr is log. The workloads are the shapes of
the goals in docs/kernels, B = 16, Q = 100, C = 256 and a grid of 160 x 160.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import inputs
import torch
from torch import Tensor

from maskformer_fast import Targets, ops
from maskformer_fast.kernels import launch
from maskformer_fast.kernels.launch import Config, using

MARGIN = 0.02  # of the time: less is noise
MOST = {"num_warps": 16, "num_stages": 6}
DIFFERENCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
    torch.float16: 4e-3,
}  # of the largest value
L, B, Q, K, C, GRID, SIZE = 6, 16, 100, 150, 256, (160, 160), (640, 640)
TARGETS = (20, 60)  # few and many, in matching_cost
WIDE = 320  # channels, more than matching_cost keeps at hand
HALF = "bfloat16"

Workload = Callable[[], tuple[Tensor, ...]]
Clock = Callable[[Workload], float]  # milliseconds of a call


class Different(Exception):
    """A tile gives another result than the table's."""


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
    from triton.testing import do_bench

    for op in arguments.ops or WORKLOADS:
        for workload in WORKLOADS[op](torch.device("cuda")):
            tune(workload, lambda call: do_bench(call, return_mode="median"), arguments.table)
    return 0


# --- search -----------------------------------------------------------------------------------


def tune(workload: Workload, clock: Clock, path: Path) -> None:
    """Improve every class of sizes that the workload uses, in the table at `path`."""
    used = classes_of(workload)
    expected = workload()
    for config in used:

        def milliseconds(candidate: Config) -> float:
            with using(candidate):
                check(workload(), expected)
                return clock(workload)

        before = milliseconds(config)
        best, after = search(config, before, milliseconds)
        architecture = launch.architecture(expected[0].device)
        write(best, architecture, path)
        print(
            f"{config.name} {config.size_class}: {before:.4f} ms -> {after:.4f} ms {best.entry()}"
        )


def classes_of(workload: Workload) -> list[Config]:
    """The configurations with which a call of the workload starts kernels."""
    used: dict[tuple[str, str], Config] = {}
    start = launch.start

    def note(kernel: Any, grid: Any, config: Config, *rest: Any) -> None:
        used[config.name, config.size_class] = config
        start(kernel, grid, config, *rest)

    launch.start = note
    try:
        workload()
    finally:
        launch.start = start
    return list(used.values())


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
    """Each block size and the warps doubled and halved, a stage more and less."""
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
    for dtype in (HALF, "float32"):
        _, [*_, last], features, _ = embeddings(device, dtype, 20)
        for rows in (Q, 20):
            leaves = [last[:, :rows].requires_grad_(), features.requires_grad_()]
            grad = torch.ones(B, rows, *GRID, device=device, dtype=last.dtype)

            def call(leaves: list[Tensor] = leaves, grad: Tensor = grad) -> tuple[Tensor, ...]:
                probs = ops.mask_probs(*leaves, backend="triton")
                return probs.detach(), *torch.autograd.grad(probs, leaves, grad)

            yield call


def matching_cost_workloads(device: torch.device) -> Iterator[Workload]:
    wide = embeddings(device, HALF, TARGETS[0], WIDE)
    yield lambda: (ops.matching_cost(*wide, backend="triton"),)
    overlapping = wide._replace(targets=as_masks(wide.targets))
    yield lambda: (ops.matching_cost(*overlapping, backend="triton"),)
    for dtype in (HALF, "float32"):
        for t in TARGETS:
            found = embeddings(device, dtype, t)
            yield lambda e=found: (ops.matching_cost(*e, backend="triton"),)
            [*_, classes], [*_, queries], features, targets = found
            logits = ops.mask_logits(queries, features)
            arguments = (classes, logits, targets)
            yield lambda a=arguments: (ops.matching_cost_from_logits(*a, backend="triton"),)


def as_masks(targets: Targets) -> Targets:
    """The same targets in the form of masks."""
    index = torch.arange(targets.labels.shape[1], device=targets.labels.device)[:, None, None]
    masks = targets.pixels[:, None] == index
    return Targets(targets.labels, targets.num_targets, masks=masks)


def mask_loss_workloads(device: torch.device) -> Iterator[Workload]:
    for layers, t in ((L, 20), (1, 3)):
        scene = inputs.scene(B, t, t, K, GRID, SIZE).to(device)
        logits = scene.mask_logits.repeat(layers, 1, 1, 1).requires_grad_()

        def call(logits: Tensor = logits, targets: Any = scene.targets) -> tuple[Tensor, ...]:
            focal, dice = ops.mask_loss(logits, targets, backend="triton")
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
