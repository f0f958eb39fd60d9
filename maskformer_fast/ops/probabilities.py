"""Class and mask probabilities as the references of the three maps read them.

A probability that is NaN (a NaN logit, or an infinite one) counts as 0: such a query wins nothing
that another query claims, and nothing crashes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def class_probabilities(class_logits: Tensor) -> Tensor:
    """Softmax over the last dimension, in float32 (float64 stays float64)."""
    compute = torch.promote_types(class_logits.dtype, torch.float32)
    return class_logits.to(compute).softmax(-1).nan_to_num(nan=0.0)


def mask_probabilities(mask_logits: Tensor) -> Tensor:
    """Sigmoid of logits, in float32 (float64 stays float64)."""
    compute = torch.promote_types(mask_logits.dtype, torch.float32)
    return mask_logits.to(compute).sigmoid().nan_to_num(nan=0.0)


def is_among(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Whether each label is one of `classes`: bool, without copying the list to the device."""
    found = torch.zeros_like(labels, dtype=torch.bool)
    wanted = set(classes)
    first = sorted(label for label in wanted if label - 1 not in wanted)  # of runs of neighbours
    last = sorted(label for label in wanted if label + 1 not in wanted)
    for low, high in zip(first, last, strict=True):
        found |= (labels >= low) & (labels <= high)
    return found
