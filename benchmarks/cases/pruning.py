"""The maps of noise, where bounds decide next to nothing: what looking at them costs at worst.

The baseline is the same kernel told to score every pixel. Ratios below 1 are the loss.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import panoptic_map
import semantic_map
import torch
from measure import Entrant
from race import Race, Settings, Unavailable

from maskformer_fast import backends, use_backend
from maskformer_fast.ops import compiled_maps

CASES = (semantic_map, panoptic_map)


def at_both_sizes(shapes: list[Any]) -> list[Any]:
    """And at twice the grid: with fewer pixels in a cell there are no bounds."""
    doubled = [s._replace(size=(2 * s.grid[0], 2 * s.grid[1])) for s in shapes]
    return [*shapes, *doubled]


SHAPES: list[Any] = [shape for case in CASES for shape in at_both_sizes(case.SHAPES)]
QUICK_SHAPES: list[Any] = [case.QUICK_SHAPES[-1] for case in CASES]
BASELINE = "without pruning"
PEERS = (BASELINE,)


@contextlib.contextmanager
def without_pruning() -> Iterator[None]:
    compiled_maps.PRUNE = False
    try:
        with use_backend("cpu"):
            yield
    finally:
        compiled_maps.PRUNE = True


def unpruned(call: Any, device: str, *inputs: Any) -> Entrant:
    if device != "cpu" or backends()["semantic_map"]["cpu"] is not None:
        raise Unavailable("only the cpu backend can be told not to prune, and it does not run here")
    return Entrant(functools.partial(call, *inputs), context=without_pruning)


def make_race(settings: Settings, shape: Any) -> Race:
    [case] = (case for case in CASES if isinstance(shape, case.Shape))
    race = case.make_race(settings, shape, {})
    class_logits, mask_logits, *options = race.inputs
    generator = torch.Generator().manual_seed(0)
    noise = 3 * torch.randn(mask_logits.shape, generator=generator)
    if case is semantic_map:  # in panoptic_map it would leave hardly any query above the threshold
        class_logits = 3 * torch.randn(class_logits.shape, generator=generator).to(class_logits)
    return replace(
        race,
        title=f"{race.title} of noise",
        inputs=(class_logits, noise.to(mask_logits), *options),
        peers={BASELINE: functools.partial(unpruned, race.ours, settings.device.type)},
        baseline=BASELINE,
    )


def test_pruning(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
