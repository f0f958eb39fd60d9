"""Calls of the Triton kernels' launchers that reach the variants a user's call can start: classes
of sizes, options, and what Triton makes of sizes, strides and addresses (1, divided by 16, other).

A new file of kernels adds its calls to CALLS.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from maskformer_fast.kernels import mask_logits, mask_loss, matching_cost

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SAMPLED = torch.float16  # of which the commonest calls are made: the variants are bfloat16's
QUERIES, CHANNELS, GRID = 100, 256, (16, 16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def zeros(*shape: int, dtype: torch.dtype, gap: bool = False) -> Tensor:
    """With a gap, rows lie one item further apart than they are long."""
    return torch.zeros(*shape[:-1], shape[-1] + gap, dtype=dtype)[..., : shape[-1]]


# --- mask_logits --------------------------------------------------------------------------------


def call_mask_logits(dtype: torch.dtype) -> None:
    """Many and few rows; sizes that 16 divides and not."""
    if dtype == SAMPLED:
        call_mask_logits_of(QUERIES, CHANNELS, 16, torch.contiguous_format, dtype)
        return
    for rows, layout in itertools.product((QUERIES, 20), LAYOUTS):
        for channels, side in ((CHANNELS, 16), (CHANNELS, 17), (100, 16), (1, 16), (1, 1)):
            call_mask_logits_of(rows, channels, side, layout, dtype)
    call_mask_logits_of(1, 1, 1, torch.contiguous_format, dtype)


def call_mask_logits_of(
    rows: int, channels: int, side: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    queries = torch.zeros(2, rows, channels, dtype=dtype)
    features = torch.zeros(2, channels, side, side, dtype=dtype).contiguous(memory_format=layout)
    grad = torch.zeros(2, rows, side, side, dtype=dtype)
    for with_sigmoid in (False, True):
        mask_logits.forward(queries, features, with_sigmoid)
        mask_logits.backward(grad, queries, features, with_sigmoid)


# --- mask_loss ----------------------------------------------------------------------------------


def call_mask_loss(dtype: torch.dtype) -> None:
    """Ratios of sizes that unroll 1 to 4 columns, with and without a loop over them."""
    slopes = torch.zeros(2, 6, 5, *GRID)
    mask_loss.backward(*torch.zeros(2, 6, 5), slopes, dtype)
    mask_loss.backward(*torch.zeros(2, 6, 5), slopes[..., 1:, 1:].contiguous(), dtype)
    if dtype != torch.float32:  # options do not depend on it
        for ratio in (3, 4):
            call_mask_loss_forward(dtype, ratio, ignore_void=True)
        return
    for ratio in (1, 2, 3, 4, 5, 8, 32):
        for masks, ignore_void, gamma in itertools.product((0, 1), (0, 1), (2.0, 0.5)):
            call_mask_loss_forward(dtype, ratio, masks=masks, ignore_void=ignore_void, gamma=gamma)
    for masks, ignore_void in itertools.product((0, 1), (0, 1)):
        call_mask_loss_forward(dtype, masks=masks, ignore_void=ignore_void, with_slopes=False)
        call_mask_loss_forward(dtype, masks=masks, ignore_void=ignore_void, alpha=1.5)
        call_mask_loss_forward(dtype, masks=masks, ignore_void=ignore_void, layers=2048)
    call_mask_loss_forward(dtype, grid=(15, 17))
    call_mask_loss_forward(dtype, 1, grid=(1, 1))


def call_mask_loss_forward(
    dtype: torch.dtype,
    ratio: int = 4,
    *,
    masks: int = False,
    ignore_void: int = False,
    alpha: float = 0.25,
    gamma: float = 2.0,
    with_slopes: bool = True,
    layers: int = 3,
    grid: tuple[int, int] = GRID,
) -> None:
    logits = torch.zeros(1, 1, *grid, dtype=dtype).expand(2 * layers, 5, *grid)
    size = [ratio * side for side in grid]
    if masks:
        pixels = torch.zeros(2, 5, *size, dtype=torch.bool)
    else:
        pixels = torch.zeros(2, *size, dtype=torch.int16)
    valid = torch.ones(2 * layers, 5, dtype=torch.bool)
    mask_loss.forward(logits, pixels, valid, alpha, gamma, bool(ignore_void), with_slopes)


# --- matching_cost ------------------------------------------------------------------------------


def call_matching_cost(dtype: torch.dtype) -> None:
    """Few and many targets; channels that fit a block and not; layouts that 16 divides and not."""
    for targets in (20, 40):
        for gamma, ignore_void in ((2.0, False), (2.0, True), (1.5, False), (1.5, True)):
            call_matching_costs(dtype, targets, gamma=gamma, ignore_void=ignore_void)
    if dtype == SAMPLED:
        return
    for targets, layout in itertools.product((20, 40), LAYOUTS):
        for gamma, ignore_void in ((2.0, False), (1.5, True)):
            rest = {"layout": layout, "gamma": gamma, "ignore_void": ignore_void}
            call_matching_costs(dtype, targets, **rest)
            call_matching_costs(dtype, targets, side=17, **rest)
            call_matching_costs(dtype, targets, channels=100, **rest)
            call_matching_costs(dtype, targets, channels=320, side=17, **rest)
            call_matching_costs(dtype, targets, gap=True, **rest)
        call_matching_costs(dtype, targets, layout, side=1, channels=1)
    call_matching_costs(dtype, 1, side=1, channels=1)


def call_matching_costs(
    dtype: torch.dtype,
    targets: int,
    layout: torch.memory_format = torch.contiguous_format,
    *,
    side: int = 16,
    channels: int = CHANNELS,
    gamma: float = 2.0,
    ignore_void: bool = False,
    gap: bool = False,
) -> None:
    """From embeddings and from logits; of masks where void is ignored, else of segments."""
    classes = zeros(6, 2, QUERIES, 134, dtype=dtype)
    queries = zeros(6, 2, QUERIES, channels, dtype=dtype, gap=gap)
    features = zeros(2, channels, side, side, dtype=dtype).contiguous(memory_format=layout)
    logits = zeros(2, QUERIES, side, side, dtype=dtype).contiguous(memory_format=layout)
    labels, counts = torch.zeros(2, targets).long(), torch.zeros(2).int()
    pixels = torch.zeros(2, 64, 64, dtype=torch.int16)
    if ignore_void:
        pixels = torch.zeros(2, targets, 64, 64, dtype=torch.bool)
    rest = (labels, counts, pixels, 1.0, 20.0, 1.0, 0.25, gamma, ignore_void)
    matching_cost.from_embeddings(classes, queries, features, *rest)
    matching_cost.from_logits(classes[0], logits, *rest)


CALLS = {
    "mask_logits": call_mask_logits,
    "mask_loss": call_mask_loss,
    "matching_cost": call_matching_cost,
}
