"""How far a result is from the expected one: as text for the table, or AssertionError."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BFLOAT16 = (
    3e-2  # of the largest value, after a few products: eight bits, and sums of their roundings
)
MOST_DIFFERENT_PIXELS = 1e-3  # of a map: float32 rounding at ties, and of the peers' coordinates


def apart(got: Tensor, expected: Tensor, tolerance: float) -> str:
    """The largest difference, relative to the largest value; at most `tolerance`."""
    scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    difference = ((got - expected).abs().max() / scale).item()
    assert difference <= tolerance, f"{difference:.1e} apart, expected at most {tolerance:.0e}"
    return f"{difference:.0e}" if difference else "0"


def all_apart(got: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> str:
    """The largest difference of several results, each relative to its own largest value."""
    pairs = zip(got, expected, strict=True)
    return max((apart(one, other, tolerance) for one, other in pairs), key=float)


def different_pixels(got: Tensor, expected: Tensor) -> str:
    """How many pixels of two maps differ; at most MOST_DIFFERENT_PIXELS of them."""
    count, most = int((got != expected).sum()), MOST_DIFFERENT_PIXELS * expected.numel()
    assert got.shape == expected.shape and count <= most, (
        f"{count} of {expected.numel()} pixels differ, expected at most {most:.0f}"
    )
    return f"{count} px"


def total_cost(cost: Tensor, query_of_target: Tensor) -> Tensor:
    """[N, T, Q] and [N, T] -> [N] float64, of one-to-one matchings."""
    ordered = query_of_target.sort(1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all(), "a query is matched twice"
    return cost.gather(2, query_of_target[..., None]).double().sum((1, 2))
