"""The matching cost of six decoder layers from embeddings: the logits are never stored.

The shape is that of the criterion, which this is the first step of.
"""

from typing import Any, NamedTuple

import inputs
import peers
from differences import BFLOAT16, apart
from race import Race, Settings

from maskformer_fast.ops import matching_cost


class Shape(NamedTuple):
    L: int
    B: int
    Q: int
    T: int
    K: int
    C: int
    grid: inputs.Size
    targets: inputs.Size
    dtype: str = "float32"


SHAPES = [Shape(6, 2, 100, 12, 150, 256, (160, 160), (640, 640))]
CUDA_SHAPES = [
    Shape(6, 16, 100, 20, 150, 256, (160, 160), (640, 640), dtype)
    for dtype in ("float32", "bfloat16")
]
QUICK_SHAPES = [Shape(2, 1, 100, 12, 150, 256, (80, 80), (320, 320))]
PEERS = {
    "transformers": peers.transformers_matching_cost,
    "torch.compile": peers.compiled(peers.transformers_matching_cost),
}


def make_race(settings: Settings, shape: Shape) -> Race:
    scene = inputs.scene(shape.B, shape.Q, shape.T, shape.K, shape.grid, shape.targets)
    embeddings = inputs.embeddings(scene, shape.L, shape.C).to(settings.device, shape.dtype)
    tolerance = 1e-4 if shape.dtype == "float32" else BFLOAT16
    return Race(
        settings,
        title="matching cost of all layers",
        shape=shape,
        ops=("matching_cost",),
        inputs=embeddings,
        ours=matching_cost,
        peers=PEERS,
        baseline="transformers",
        difference=lambda got, expected: apart(got.float(), expected, tolerance),
        traffic=inputs.bytes_of(*embeddings[:3], embeddings.targets.pixels),
    )


def test_matching_layers(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
