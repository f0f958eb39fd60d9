"""What the launchers of the three maps in C++ (csrc/cpu/map_shape.hpp) have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from maskformer_fast.ops.floats import float_type

PRUNE = True  # False: score every pixel, to see what the bounds of csrc/cpu/map_bounds.hpp gain


def dense(mask_logits: Tensor, region: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits [B, Q, h, w] in C order, and the regions [B, 2] float64: all, if None."""
    return mask_logits.contiguous(), dense_region(region, mask_logits)


def dense_region(region: Tensor | None, grid: Tensor) -> Tensor:
    """The regions [B, 2] float64 in C order: all of the grid [B, ..., h, w], if None."""
    if region is None:
        region = torch.tensor(grid.shape[-2:], dtype=torch.float64).expand(len(grid), 2)
    return region.to(torch.float64).contiguous()


def addresses(
    mask_logits: Tensor, region: Tensor, height: int, width: int
) -> dict[str, int | tuple[int, ...]]:
    """The arguments that describe the inputs: tensors of `dense`, which must outlive the call."""
    return {
        "mask_logits": mask_logits.data_ptr(),
        "type": float_type(mask_logits),
        "region": region.data_ptr(),
        "sizes": (*mask_logits.shape, height, width),
        "threads": torch.get_num_threads(),
    }
