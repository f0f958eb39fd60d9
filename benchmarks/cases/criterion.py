"""The training loss of six layers, forward and backward, from embeddings to their gradients.

The shape is that of the matching. Both sides start from the embeddings: the logits of all layers
are part of the time and of the memory.
"""

from typing import Any, NamedTuple

import inputs
import peers
import torch
from differences import all_apart
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


SHAPES = [Shape(6, 2, 100, 12, 150, 256, (160, 160), (640, 640))]
QUICK_SHAPES = [Shape(2, 1, 100, 12, 150, 256, (80, 80), (320, 320))]
PEERS = {
    "transformers": peers.transformers_criterion,
    "torch.compile": peers.compiled(peers.transformers_criterion),
}


def loss_and_gradients(
    class_logits: Tensor, mask_queries: Tensor, pixel_features: Tensor, targets: Targets
) -> tuple[Tensor, ...]:
    criterion = MaskFormerCriterion(class_logits.shape[-1] - 1).to(class_logits.device)
    total, _ = criterion(class_logits, mask_queries, pixel_features, targets)
    gradients = torch.autograd.grad(total, (class_logits, mask_queries, pixel_features))
    return total, *gradients


def make_race(settings: Settings, shape: Shape) -> Race:
    scene = inputs.scene(shape.B, shape.Q, shape.T, shape.K, shape.grid, shape.targets)
    *tensors, targets = inputs.embeddings(scene, shape.L, shape.C)
    tensors = [tensor.to(settings.device).requires_grad_() for tensor in tensors]
    return Race(
        settings,
        title="criterion, forward and backward",
        shape=shape,
        ops=("matching_cost", "linear_assignment", "mask_logits", "mask_loss"),
        inputs=(*tensors, targets.to(settings.device)),
        ours=loss_and_gradients,
        peers=PEERS,
        baseline="transformers",
        difference=lambda got, expected: all_apart(got, expected, 1e-4),
        traffic=inputs.bytes_of(
            *tensors, *tensors, targets.pixels
        ),  # inputs, and as large gradients
    )


def test_criterion(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
