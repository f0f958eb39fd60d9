"""csrc/core/vector_math.hpp, seen through the ops: error over the float range, limits, NaN."""

import math

import pytest
import torch
from backends import each_backend

from maskformer_fast import Targets
from maskformer_fast.ops import mask_probs, matching_cost_from_logits

RELATIVE = 5e-7  # of a float32 result; 4 ulp
GRID = torch.cat([torch.linspace(-87, 87, 20001), torch.tensor([0.0, -0.0, 1e-38, -1e-38, 88.0])])


def softplus_terms(x: torch.Tensor, inside: bool, gamma: float, backend: str) -> torch.Tensor:
    """(1 - s)^gamma softplus(-x) of a pixel inside the target, s^gamma softplus(x) outside it."""
    targets = Targets.from_masks([torch.full((1, 1, 1), inside)], [torch.tensor([0])])
    cost = matching_cost_from_logits(
        torch.zeros(1, len(x), 2, dtype=x.dtype),
        x.reshape(1, -1, 1, 1),
        targets,
        class_weight=0,
        mask_weight=1,
        dice_weight=0,
        alpha=float(inside),
        gamma=gamma,
        backend=backend,
    )
    return cost[0, 0].double()


@each_backend("matching_cost_from_logits")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_terms_are_exact_to_a_few_ulp(backend, inside, gamma):
    z = GRID.double() * (1 if inside else -1)
    softplus = torch.log1p(torch.exp(-z.abs()))
    exact = torch.exp(-gamma * (softplus + z.clamp(min=0))) * (softplus + (-z).clamp(min=0))
    got = softplus_terms(GRID, inside, gamma, backend)
    normal = exact > 2.0**-100
    tolerance = RELATIVE * (1 + gamma * z.abs())  # an exponent of float32 is that far off
    assert ((got - exact).abs() <= tolerance * exact)[normal].all()
    assert (got[~normal] <= 2.0**-99).all()


@each_backend("mask_logits")
def test_sigmoid_is_exact_to_a_few_ulp_and_keeps_nan_and_infinity(backend):
    def sigmoid(x):
        return mask_probs(x.reshape(1, -1, 1), torch.ones(1, 1, 1, 1), backend=backend)[0, :, 0, 0]

    exact = GRID.double().sigmoid()
    assert ((sigmoid(GRID).double() - exact).abs() <= RELATIVE * exact).all()
    edges = sigmoid(torch.tensor([math.inf, -math.inf, -1e30, math.nan]))
    assert edges[:3].tolist() == [1.0, 0.0, 0.0] and edges[3].isnan()
