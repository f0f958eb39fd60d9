"""Inputs and comparisons shared by the tests of the three maps and of the post-processing."""

import torch
import torch.nn.functional as F
from torch import Tensor

TIE = 1e-5  # two scores within this, relative to the larger, may change places by rounding


def class_logits_of(*queries: tuple[int, float], num_classes: int) -> Tensor:
    """Logits [1, Q, K+1] of queries (label, its probability); the rest is spread evenly."""
    probs = torch.empty(len(queries), num_classes + 1, dtype=torch.float64)
    for row, (label, score) in zip(probs, queries, strict=True):
        row.fill_((1 - score) / num_classes)
        row[label] = score
    return probs.log().float()[None]


def mask_logits_of(*rows: list[float]) -> Tensor:
    """Logits [1, Q, 1, w] of one row of mask probabilities per query."""
    return torch.tensor(rows, dtype=torch.float64).logit().float()[None, :, None]


def random_predictions(
    b: int, q: int, k: int, h: int, w: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Class logits [b, q, k+1] and mask logits [b, q, h, w] of confident, differing queries."""
    generator = torch.Generator().manual_seed(seed)
    class_logits = 3 * torch.randn(b, q, k + 1, generator=generator)
    mask_logits = 3 * torch.randn(b, q, h, w, generator=generator)
    return class_logits.to(dtype), mask_logits.to(dtype)


def interpolate(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[Q, h, w] -> [Q, H, W] in float64, by PyTorch's own bilinear upsampling."""
    return F.interpolate(x.double()[None], size=size, mode="bilinear", align_corners=False)[0]


def is_tie(scores: Tensor) -> Tensor:
    """scores [n, H, W] -> bool [H, W]: the two best lie within rounding of each other."""
    if len(scores) == 1:
        return torch.zeros(scores.shape[1:], dtype=torch.bool)
    best, second = scores.topk(2, 0).values
    return best - second <= TIE * best.abs()


def assert_equal_off_ties(got: Tensor, expected: Tensor, tie: Tensor, share: float = 0.01) -> None:
    """Maps [H, W] agree wherever `tie` is False, and ties are few."""
    different = got != expected
    assert not (different & ~tie).any(), f"{int((different & ~tie).sum())} pixels differ"
    assert int(different.sum()) <= share * different.numel()
