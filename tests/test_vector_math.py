"""csrc/core/vector_math.hpp and the terms of the Triton kernels, seen through the ops: error over
the float range, limits, NaN."""

import math

import pytest
import torch
from backends import device_of, each_backend

from maskformer_fast import Targets
from maskformer_fast.ops import mask_probs, matching_cost_from_logits

RELATIVE = 5e-7  # of a float32 result; 4 ulp
ROUNDED = 2.0**-22  # of a float32 near 1, after PTX's approximations of reciprocal and logarithm
GRID = torch.cat([torch.linspace(-87, 87, 20001), torch.tensor([0.0, -0.0, 1e-38, -1e-38, 88.0])])


def softplus_terms(x: torch.Tensor, inside: bool, gamma: float, backend: str) -> torch.Tensor:
    """(1 - s)^gamma softplus(-x) of a pixel inside the target, s^gamma softplus(x) outside it."""
    targets = Targets.from_masks([torch.full((1, 1, 1), inside)], [torch.tensor([0])])
    cost = matching_cost_from_logits(
        x.new_zeros(1, len(x), 2),
        x.reshape(1, -1, 1, 1),
        targets.to(x.device),
        class_weight=0,
        mask_weight=1,
        dice_weight=0,
        alpha=float(inside),
        gamma=gamma,
        backend=backend,
    )
    return cost[0, 0].double()


def exact_terms(
    grid: torch.Tensor, inside: bool, gamma: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z = x inside and -x outside, and the two factors of the term."""
    z = grid.double() * (1 if inside else -1)
    softplus = torch.log1p(torch.exp(-z.abs()))
    return z, torch.exp(-gamma * (softplus + z.clamp(min=0))), softplus + (-z).clamp(min=0)


@each_backend("matching_cost_from_logits", of=("triton",))
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_terms_of_triton_are_as_exact_as_their_size_asks(backend, inside, gamma):
    """Softplus is off by the rounding of 1 + e and of |x|, 1 - s by that of s: a term may be off
    by what they are in a sum with terms near 1."""
    grid = GRID[::20].to(device_of(backend))
    z, power, softplus = exact_terms(grid, inside, gamma)
    got = softplus_terms(grid, inside, gamma, backend)
    of_power = RELATIVE * (1 + gamma * z.abs()) * power
    if gamma == 2:  # (1 - s)^2
        of_power += ROUNDED * (2 * power.sqrt() + ROUNDED)
    of_softplus = ROUNDED * (1 + z.abs())
    tolerance = of_power * softplus + (power + of_power) * of_softplus
    assert ((got - power * softplus).abs() <= tolerance + 2.0**-99).all()


@each_backend("matching_cost_from_logits", of=("reference", "cpu"))
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_terms_are_exact_to_a_few_ulp(backend, inside, gamma):
    z, power, softplus = exact_terms(GRID, inside, gamma)
    exact = power * softplus
    got = softplus_terms(GRID, inside, gamma, backend)
    normal = exact > 2.0**-100
    tolerance = RELATIVE * (1 + gamma * z.abs())  # an exponent of float32 is that far off
    assert ((got - exact).abs() <= tolerance * exact)[normal].all()
    assert (got[~normal] <= 2.0**-99).all()


@each_backend("mask_logits")
def test_sigmoid_is_exact_to_a_few_ulp_and_keeps_nan_and_infinity(backend):
    def sigmoid(x):
        queries = x.reshape(1, -1, 1).to(device_of(backend))
        return mask_probs(queries, queries.new_ones(1, 1, 1, 1), backend=backend)[0, :, 0, 0].cpu()

    exact, tolerance = GRID.double().sigmoid(), RELATIVE
    if backend == "triton":  # whose exponential is binary: x log2(e) rounds, as log2(e) does
        tolerance = RELATIVE + 2.0**-23 * GRID.double().abs()
    assert ((sigmoid(GRID).double() - exact).abs() <= tolerance * exact).all()
    edges = sigmoid(torch.tensor([math.inf, -math.inf, -1e30, math.nan]))
    assert edges[:3].tolist() == [1.0, 0.0, 0.0] and edges[3].isnan()
