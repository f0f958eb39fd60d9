"""Matching in one decoder layer: the cost of every pair from logits, then the assignment.

The shape is a crop of ADE20K or COCO in training, with a dozen targets.
"""

from typing import Any, NamedTuple

import inputs
import peers
from differences import apart, total_cost
from race import Race, Settings
from torch import Tensor

from maskformer_fast import Targets, use_backend
from maskformer_fast.ops import linear_assignment, matching_cost_from_logits


class Shape(NamedTuple):
    B: int
    Q: int
    T: int
    K: int
    grid: inputs.Size
    targets: inputs.Size


SHAPES = [Shape(2, 100, 12, 150, (160, 160), (640, 640))]
QUICK_SHAPES = SHAPES
PEERS = {
    "transformers": peers.transformers_matching,
    "torch.compile": peers.compiled_matching,
}


def match(class_logits: Tensor, mask_logits: Tensor, targets: Targets) -> Tensor:
    cost = matching_cost_from_logits(class_logits, mask_logits, targets)
    return linear_assignment(cost, targets.num_targets).query_of_target


def make_race(settings: Settings, shape: Shape, contending: dict[str, Any] = PEERS) -> Race:
    scene = inputs.scene(*shape).to(settings.device)
    with use_backend("reference"):
        cost = matching_cost_from_logits(*scene)

    return Race(
        settings,
        title="matching",
        shape=shape,
        ops=("matching_cost_from_logits", "linear_assignment"),
        inputs=scene,
        ours=match,
        peers=contending,
        baseline="transformers",
        difference=lambda got, expected: apart(
            total_cost(cost, got), total_cost(cost, expected), 1e-5
        ),
        traffic=inputs.bytes_of(scene.class_logits, scene.mask_logits, scene.targets.pixels, cost),
        pixels=shape.grid[0] * shape.grid[1],
    )


def test_matching(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
