"""Focal and dice loss of the matched masks at full size, forward and backward.

The masks of six layers at the shape of the criterion.
"""

from typing import Any, NamedTuple

import inputs
import peers
import torch
from differences import all_apart
from race import Race, Settings
from torch import Tensor

from maskformer_fast import Targets
from maskformer_fast.ops import mask_loss


class Shape(NamedTuple):
    L: int
    B: int
    T: int
    grid: inputs.Size
    targets: inputs.Size


SHAPES = [Shape(6, 2, 12, (160, 160), (640, 640))]
CUDA_SHAPES = [Shape(6, 16, t, (160, 160), (640, 640)) for t in (10, 20)]
QUICK_SHAPES = [Shape(2, 1, 12, (80, 80), (320, 320))]
PEERS = {
    "torch": peers.torch_mask_loss,
    "torch.compile": peers.compiled(peers.torch_mask_loss),
}


def losses_and_gradient(mask_logits: Tensor, targets: Targets) -> tuple[Tensor, ...]:
    focal, dice = mask_loss(mask_logits, targets)
    return focal, dice, *torch.autograd.grad(focal.sum() + dice.sum(), mask_logits)


def make_race(settings: Settings, shape: Shape) -> Race:
    scene = inputs.scene(shape.B, shape.T, shape.T, 1, shape.grid, shape.targets)
    mask_logits = scene.mask_logits.repeat(shape.L, 1, 1, 1).to(settings.device).requires_grad_()
    return Race(
        settings,
        title="mask loss, forward and backward",
        shape=shape,
        ops=("mask_loss",),
        inputs=(mask_logits, scene.targets.to(settings.device)),
        ours=losses_and_gradient,
        peers=PEERS,
        baseline="torch",
        difference=lambda got, expected: all_apart(got, expected, 1e-4),
        traffic=inputs.bytes_of(mask_logits, mask_logits, scene.targets.pixels),
    )


def test_mask_loss(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
