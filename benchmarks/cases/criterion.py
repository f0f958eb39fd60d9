"""The training loss of six layers, forward and backward, from embeddings to their gradients.

The shape is that of the matching. Both sides start from the embeddings: the logits of all layers
are part of the time and of the memory.
"""

from typing import Any, NamedTuple

import inputs
import peers
import torch
from differences import BFLOAT16, all_apart
from race import Race, Settings
from torch import Tensor

from maskformer_fast import MaskFormerCriterion, Targets


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
    "transformers": peers.transformers_criterion,
    "torch.compile": peers.compiled(peers.transformers_criterion),
}


def make_race(settings: Settings, shape: Shape) -> Race:
    scene = inputs.scene(shape.B, shape.Q, shape.T, shape.K, shape.grid, shape.targets)
    embeddings = inputs.embeddings(scene, shape.L, shape.C).to(settings.device, shape.dtype)
    tensors = [tensor.requires_grad_() for tensor in embeddings[:3]]
    criterion = MaskFormerCriterion(shape.K).to(settings.device)
    tolerance = 1e-4 if shape.dtype == "float32" else BFLOAT16

    def loss_and_gradients(*predictions: Tensor | Targets) -> tuple[Tensor, ...]:
        total, _ = criterion(*predictions)
        return total, *torch.autograd.grad(total, tensors)

    return Race(
        settings,
        title="criterion, forward and backward",
        shape=shape,
        ops=("matching_cost", "linear_assignment", "mask_logits", "mask_loss"),
        inputs=embeddings,
        ours=loss_and_gradients,
        peers=PEERS,
        baseline="transformers",
        difference=lambda got, expected: all_apart(got, expected, tolerance),
        traffic=inputs.bytes_of(
            *tensors, *tensors, embeddings.targets.pixels
        ),  # inputs, and as large gradients
    )


def test_criterion(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
