"""Calls of the Triton launchers that together start every kernel with every configuration.

The tensors are small and on the CPU: what is compiled depends on dtypes, layouts, options and
classes of sizes only.
"""

from __future__ import annotations

import torch

from maskformer_fast.kernels import mask_logits, mask_loss, matching_cost

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
QUERIES, CHANNELS, GRID = 100, 256, (16, 16)


def call_mask_logits(dtype: torch.dtype) -> None:
    for rows in (QUERIES, mask_logits.FEW_ROWS):
        queries = torch.zeros(2, rows, CHANNELS, dtype=dtype)
        features, grad = (torch.zeros(2, c, *GRID, dtype=dtype) for c in (CHANNELS, rows))
        for layout in (features, features.contiguous(memory_format=torch.channels_last)):
            for with_sigmoid in (False, True):
                mask_logits.forward(queries, layout, with_sigmoid)
                mask_logits.backward(grad, queries, layout, with_sigmoid)
    one = torch.zeros(1, 1, 1, 1, dtype=dtype)  # Triton makes sizes of 1 constants
    mask_logits.forward(one[0], one, True)
    mask_logits.backward(one, one[0], one, True)


def call_mask_loss(dtype: torch.dtype) -> None:
    """Ratios of sizes that unroll 1, 3 and 4 columns, with and without a loop over them."""
    slopes = torch.zeros(2, 6, 5, *GRID)
    mask_loss.backward(*torch.zeros(2, 6, 5), slopes, dtype)
    call_mask_loss_forward(dtype)
    call_mask_loss_forward(dtype, 1, grid=(1, 1))
    if dtype != torch.float32:
        return  # what differs below does not depend on it
    for ratio in (1, 3, 32):
        call_mask_loss_forward(dtype, ratio)
    for masks in (False, True):
        for ignore_void in (False, True):
            call_mask_loss_forward(dtype, masks=masks, ignore_void=ignore_void, gamma=0.5)
            call_mask_loss_forward(dtype, masks=masks, ignore_void=ignore_void, with_slopes=False)
    call_mask_loss_forward(dtype, layers=2048)


def call_mask_loss_forward(
    dtype: torch.dtype,
    ratio: int = 4,
    *,
    masks: bool = False,
    ignore_void: bool = False,
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
    mask_loss.forward(logits, pixels, valid, 0.25, gamma, ignore_void, with_slopes)


def call_matching_cost(dtype: torch.dtype) -> None:
    """Few and many targets; from embeddings also with channels that do not fit a block."""
    for targets in (20, 40):
        for ignore_void in (False, True):
            call_matching_costs(dtype, targets, ignore_void=ignore_void)
        call_matching_costs(dtype, targets, gamma=1.5)
    call_matching_costs(dtype, 1, side=1, channels=1)
    call_matching_costs(dtype, 20, channels=100)
    call_matching_costs(dtype, 20, side=17, channels=320, gamma=1.5, ignore_void=True)


def call_matching_costs(
    dtype: torch.dtype,
    targets: int,
    *,
    side: int = 16,
    channels: int = CHANNELS,
    gamma: float = 2.0,
    ignore_void: bool = False,
) -> None:
    """From embeddings and from logits; of masks where void is ignored, else of segments."""
    classes = torch.zeros(6, 2, QUERIES, 134, dtype=dtype)
    queries = torch.zeros(6, 2, QUERIES, channels, dtype=dtype)
    features = torch.zeros(2, channels, side, side, dtype=dtype)
    labels, counts = torch.zeros(2, targets).long(), torch.zeros(2).int()
    pixels = torch.zeros(2, 64, 64, dtype=torch.int16)
    if ignore_void:
        pixels = torch.zeros(2, targets, 64, 64, dtype=torch.bool)
    rest = (labels, counts, pixels, 1.0, 20.0, 1.0, 0.25, gamma, ignore_void)
    matching_cost.from_embeddings(classes, queries, features, *rest)
    matching_cost.from_logits(classes[0], features[:, :QUERIES], *rest)


CALLS = {
    "mask_logits": call_mask_logits,
    "mask_loss": call_mask_loss,
    "matching_cost": call_matching_cost,
}
