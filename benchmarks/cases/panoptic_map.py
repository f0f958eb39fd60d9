"""The panoptic map of one image of COCO with 23 segments, by transformers' and the published rules.

Nothing is fused in the dialect "transformers", whose ids of fused stuff are not unique.
"""

from typing import Any, NamedTuple

import inputs
import peers
from differences import different_pixels
from race import Race, Settings
from torch import Tensor

from maskformer_fast.ops import panoptic_map


class Shape(NamedTuple):
    Q: int
    K: int
    segments: int
    grid: inputs.Size
    size: inputs.Size
    dialect: str


DIALECTS = ("transformers", "maskformer")
SHAPES = [Shape(100, 133, 23, (200, 336), (800, 1333), dialect) for dialect in DIALECTS]
QUICK_SHAPES = [Shape(100, 133, 23, (100, 168), (400, 667), dialect) for dialect in DIALECTS]
CUDA_SHAPES = [Shape(100, 133, 30, (200, 336), (800, 1333), "maskformer")]
THINGS = range(80)  # of COCO
PEERS = {
    "transformers": peers.transformers_panoptic_map,
    "torch": peers.torch_panoptic_map,
}


def segment(
    class_logits: Tensor, mask_logits: Tensor, size: inputs.Size, options: dict[str, Any]
) -> Tensor:
    return panoptic_map(class_logits, mask_logits, size, **options).segments


def make_race(settings: Settings, shape: Shape, contending: dict[str, Any] = PEERS) -> Race:
    scene = inputs.scene(1, shape.Q, shape.segments, shape.K, shape.grid, shape.size)
    class_logits, mask_logits, _ = scene.to(settings.device)
    by_transformers = shape.dialect == "transformers"
    options = {
        "thing_classes": range(shape.K) if by_transformers else THINGS,
        "score_threshold": 0.8,
        "mask_threshold": 0.5,
        "overlap_threshold": 0.8,
        "dialect": shape.dialect,
    }
    pixels = shape.size[0] * shape.size[1]
    return Race(
        settings,
        title="panoptic map",
        shape=shape,
        ops=("panoptic_map",),
        inputs=(class_logits, mask_logits, shape.size, options),
        ours=segment,
        peers=contending,
        baseline="transformers" if by_transformers else "torch",
        difference=different_pixels,
        traffic=inputs.bytes_of(class_logits, mask_logits) + 4 * pixels,  # int32 ids
        pixels=pixels,
    )


def test_panoptic_map(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
