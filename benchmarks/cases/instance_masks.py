"""The 100 best instances of one image of COCO, with their masks at full size.

transformers takes scores and masks from the grid and enlarges the masks to the nearest cell: less
work and another result, so only its scores are compared, and those loosely.
"""

from typing import Any, NamedTuple

import inputs
import peers
from differences import apart, different_pixels
from race import Race, Settings
from torch import Tensor

from maskformer_fast.ops import InstanceMasks, instance_masks


class Shape(NamedTuple):
    Q: int
    K: int
    grid: inputs.Size
    size: inputs.Size


SHAPES = [Shape(100, 133, (200, 336), (800, 1333))]
QUICK_SHAPES = [Shape(100, 133, (100, 168), (400, 667))]
SEGMENTS = 23
PEERS = {
    "transformers": peers.transformers_instance_masks,
    "torch": peers.torch_instance_masks,
    "torch.compile": peers.compiled(peers.torch_instance_masks),
}


def difference(got: InstanceMasks | Tensor, expected: InstanceMasks) -> str:
    if isinstance(got, Tensor):  # scores of the grid
        scores = expected.scores[0, : len(got)]
        return f"scores {apart(got.sort(descending=True).values, scores.cpu(), 0.05)}"
    apart(got.scores, expected.scores, 1e-5)
    return different_pixels(got.masks, expected.masks)


def make_race(settings: Settings, shape: Shape) -> Race:
    scene = inputs.scene(1, shape.Q, SEGMENTS, shape.K, shape.grid, shape.size)
    class_logits, mask_logits, _ = scene.to(settings.device)
    found = shape.Q * shape.size[0] * shape.size[1]  # one byte a pixel of a mask
    return Race(
        settings,
        title="instance masks",
        shape=shape,
        ops=("instance_masks",),
        inputs=(class_logits, mask_logits, shape.size),
        ours=instance_masks,
        peers=PEERS,
        baseline="transformers",
        difference=difference,
        traffic=inputs.bytes_of(class_logits, mask_logits) + found,
    )


def test_instance_masks(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
