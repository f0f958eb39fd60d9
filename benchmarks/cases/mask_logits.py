"""The dot product of queries and pixels, with and without the sigmoid; no gradient.

The grid of a 640 x 640 crop.
"""

from typing import Any, NamedTuple

import inputs
import peers
from differences import BFLOAT16, apart
from race import Race, Settings
from torch import Tensor

from maskformer_fast.ops import mask_logits, mask_probs


class Shape(NamedTuple):
    B: int
    Q: int
    C: int
    grid: inputs.Size
    sigmoid: bool
    dtype: str = "float32"


SHAPES = [Shape(2, 100, 256, (160, 160), sigmoid) for sigmoid in (False, True)]
QUICK_SHAPES = SHAPES
CUDA_SHAPES = [Shape(16, 100, 256, (160, 160), sigmoid, "bfloat16") for sigmoid in (False, True)]
PEERS = {
    "torch": peers.torch_mask_logits,
    "torch.compile": peers.compiled(peers.torch_mask_logits),
}


def product(mask_queries: Tensor, pixel_features: Tensor, sigmoid: bool) -> Tensor:
    return (mask_probs if sigmoid else mask_logits)(mask_queries, pixel_features)


def make_race(settings: Settings, shape: Shape) -> Race:
    scene = inputs.scene(shape.B, shape.Q, 12, 1, shape.grid, shape.grid)
    embeddings = inputs.embeddings(scene, 1, shape.C).to(settings.device, shape.dtype)
    _, [queries], features, _ = embeddings
    tolerance = 1e-5 if shape.dtype == "float32" else BFLOAT16
    return Race(
        settings,
        title="mask probabilities" if shape.sigmoid else "mask logits",
        shape=shape,
        ops=("mask_logits",),
        inputs=(queries, features, shape.sigmoid),
        ours=product,
        peers=PEERS,
        baseline="torch",
        difference=lambda got, expected: apart(got, expected, tolerance),
        traffic=inputs.bytes_of(queries, features)
        + scene.mask_logits.numel() * features.element_size(),
    )


def test_mask_logits(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
