"""The semantic map of one image of COCO, in both orders of sum and upsampling."""

from typing import Any, NamedTuple

import inputs
import peers
from differences import different_pixels
from race import Race, Settings
from torch import Tensor

from maskformer_fast.ops import semantic_map


class Shape(NamedTuple):
    Q: int
    K: int
    grid: inputs.Size
    size: inputs.Size
    order: str


SHAPES = [
    Shape(100, 133, (200, 336), (800, 1333), order) for order in ("transformers", "maskformer")
]
QUICK_SHAPES = [Shape(100, 133, (100, 168), (400, 667), shape.order) for shape in SHAPES]
CUDA_SHAPES = [
    Shape(100, classes, (h, w), (4 * h, 4 * w), shape.order)
    for classes, h, w in ((150, 160, 160), (19, 256, 512))  # ADE20K, Cityscapes
    for shape in SHAPES
]
SEGMENTS = 23
PEERS = {
    "transformers": peers.transformers_semantic_map,
    "torch": peers.torch_semantic_map,
    "torch.compile": peers.compiled(peers.torch_semantic_map),
}


def segment(class_logits: Tensor, mask_logits: Tensor, size: inputs.Size, order: str) -> Tensor:
    return semantic_map(class_logits, mask_logits, size, order=order)


def make_race(settings: Settings, shape: Shape, contending: dict[str, Any] = PEERS) -> Race:
    scene = inputs.scene(1, shape.Q, SEGMENTS, shape.K, shape.grid, shape.size)
    class_logits, mask_logits, _ = scene.to(settings.device)
    pixels = shape.size[0] * shape.size[1]
    return Race(
        settings,
        title="semantic map",
        shape=shape,
        ops=("semantic_map",),
        inputs=(class_logits, mask_logits, shape.size, shape.order),
        ours=segment,
        peers=contending,
        baseline="transformers" if shape.order == "transformers" else "torch",
        difference=different_pixels,
        traffic=inputs.bytes_of(class_logits, mask_logits) + 8 * pixels,  # int64 labels
        pixels=pixels,
    )


def test_semantic_map(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
