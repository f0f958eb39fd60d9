"""Time against size: the same step at four sizes, each with four times the pixels of the last."""

from typing import Any

import matching_cost
import panoptic_map
import semantic_map
from race import Race, Settings

SHAPES: list[Any] = [
    case.SHAPES[0]._replace(grid=(side, side), **{full: (4 * side, 4 * side)})
    for case, full in ((matching_cost, "targets"), (semantic_map, "size"), (panoptic_map, "size"))
    for side in (40, 80, 160, 320)
]
QUICK_SHAPES = [shape for shape in SHAPES if shape.grid[0] <= 80]
PEERS = ("transformers",)  # each step has its own


def make_race(settings: Settings, shape: Any) -> Race:
    for case in (matching_cost, semantic_map, panoptic_map):
        if isinstance(shape, case.Shape):
            peers = {name: peer for name, peer in case.PEERS.items() if name in PEERS}
            return case.make_race(settings, shape, peers)
    raise TypeError(f"shape: expected one of SHAPES, got {shape}")


def test_scaling(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
