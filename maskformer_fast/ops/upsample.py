"""Bilinear sampling of mask grids, shared by the references that look at full-size masks.

Output row i of H reads the grid at

    y(i) = (i + 0.5) * r / H - 0.5 = ((2 i + 1) r - H) / (2 H), clamped to [0, ceil(r) - 1]

where the grid's first r rows cover the image (r = h unless a region says less); columns likewise.
The numerator is exact (integers when r = h, float64 otherwise: r has 24 bits), so the weights are
off by one rounding at any size. For r = h it is F.interpolate(mode="bilinear",
align_corners=False) without antialiasing, up or down, whose coordinates are rounded in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from maskformer_fast.ops.precision import ieee_float32

BAND_ROWS = 32  # output rows that `row_bands` holds at a time


class Axis(NamedTuple):
    """Where n outputs read along one axis: (1 - weight) * cell[low] + weight * cell[high]."""

    low: Tensor  # [n] int64
    high: Tensor  # [n] int64
    weight: Tensor  # [n] floating


def upsample(x: Tensor, size: tuple[int, int], region: Tensor | None = None) -> Tensor:
    """Sample grids x [..., h, w] at (H, W) = size: [..., H, W], float32 or float64 as `x` has it.

    region [B, 2] float, on the device of x [B, ..., h, w]: rows and columns of each image's grid
    that its output covers; no cell beyond them is read. Differentiable in x.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if region is not None:
        images = [sample(g, *axes(g, size, r)) for g, r in zip(x, region, strict=True)]
        return torch.stack(images) if images else x.new_empty(*x.shape[:-2], *size)
    return sample(x, *axes(x, size, None))


def upsample_adjoint(grad: Tensor, grid: tuple[int, int]) -> Tensor:
    """Gradient of x [..., h, w] through `upsample` without a region, from that of its result.

    A product with the two interpolation matrices, so that the order of summation is fixed.
    """
    rows, columns = (
        _matrix(_axis(torch.full((), cells, device=grad.device), size, grad.dtype), cells)
        for cells, size in zip(grid, grad.shape[-2:], strict=True)
    )
    with ieee_float32(grad.device):
        return rows.mT @ grad @ columns


def _matrix(axis: Axis, cells: int) -> Tensor:
    """The axis as a matrix [outputs, cells]."""
    cell = torch.arange(cells, device=axis.low.device)
    low, high = axis.low[:, None] == cell, axis.high[:, None] == cell
    weight = axis.weight[:, None]
    return low * (1 - weight) + high * weight


def row_bands(
    x: Tensor, size: tuple[int, int], region: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """One image's grids x [N, h, w], sampled a few rows at a time: (rows, [N, rows, W]).

    region [2] or None, as for `upsample`.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    rows, columns = axes(x, size, region)
    for start in range(0, size[0], BAND_ROWS):
        band = slice(start, min(start + BAND_ROWS, size[0]))
        yield band, sample(x, Axis(*(part[band] for part in rows)), columns)


def axes(x: Tensor, size: tuple[int, int], region: Tensor | None) -> tuple[Axis, Axis]:
    """The rows and columns that `size` reads of one image's grids x [..., h, w]; region [2]."""
    if region is None:
        extent = [torch.full((), cells, device=x.device) for cells in x.shape[-2:]]  # int64
    else:
        extent = list(region.to(torch.float64))
    rows, columns = (_axis(r, n, x.dtype) for r, n in zip(extent, size, strict=True))
    return rows, columns


def sample(x: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """x [..., h, w] at every pair of a row and a column: [..., rows, columns]."""
    x = torch.lerp(x[..., rows.low, :], x[..., rows.high, :], rows.weight[:, None])
    return torch.lerp(x[..., columns.low], x[..., columns.high], columns.weight)


def _axis(extent: Tensor, size: int, dtype: torch.dtype) -> Axis:
    """`size` outputs over the first `extent` cells (0-d: int64 or float64), weights in `dtype`."""
    last = extent.ceil() - 1
    numerator = (2 * torch.arange(size, device=extent.device) + 1) * extent - size
    numerator = torch.minimum(numerator.clamp(min=0), last * (2 * size))
    low = torch.div(numerator, 2 * size, rounding_mode="floor")
    weight = (numerator - low * (2 * size)).to(dtype) / (2 * size)
    high = torch.minimum(low + 1, last)
    return Axis(low.long(), high.long(), weight)
