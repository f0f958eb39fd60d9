"""mask_loss in Triton: losses and slopes in one pass over the pixels; backward is a weighted sum.

With x the upsampled logit, z = x inside the target and -x outside, r = sigmoid(z), o = 1 - r:

    focal = sum_p a o^gamma softplus(-z) / P        a = alpha inside, 1 - alpha outside
    dice  = W / (2 O + W + 1)                       W = sum_p o,  O = sum_(p inside) r

(dice: sum s + sum y = 2 O + W, so 1 - (2 O + 1) / (2 O + W + 1): the area of the target drops out).
`visit` brings d focal / dx, s (1 - s) and y s (1 - s) back to the grid and keeps one image of each;
`finish` adds what the programs found and makes d dice / dx of the last two images; `weighted_sum`
is the backward pass. Logarithms and exponentials are binary: logits are scaled by log2(e) once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskformer_fast.kernels.intervals import count_of, ratio_of, start_of, weights_of
from maskformer_fast.kernels.launch import Config, configuration, launch
from maskformer_fast.kernels.logistic import LN_2
from maskformer_fast.kernels.mask_loss_pixels import (
    EMPTY,
    keep,
    logits_at,
    of_cells,
    row_sums,
    visit_line,
)

MOST_SLOTS = 4  # columns of an interval that are unrolled
FEW_PROGRAMS = 8192  # about two rounds of a large GPU
SQUARE = 2.0  # the gamma whose power is a product


@triton.jit
def lanes_of(num_images, num_targets, grid_width, runs, LANES: tl.constexpr):
    """This program's run, row n and image b; of its lanes (number among the T (w + 1) of the row,
    whether there is such a lane, whether it is this program's own, target, column)."""
    lane = tl.arange(0, LANES)
    lanes = num_targets * (grid_width + 1)
    tiles = tl.cdiv(lanes, LANES - 1)
    at = tl.program_id(0)
    flat = at % tiles * (LANES - 1) + lane
    exists = flat < lanes
    inside = tl.minimum(flat, lanes - 1)  # lanes beyond the last load what it loads
    n = at // tiles // runs
    b = (n % num_images).to(tl.int64)
    own = exists & (lane < LANES - 1)
    t, column = inside // (grid_width + 1), inside % (grid_width + 1)
    return at // tiles % runs, n.to(tl.int64), b, (flat, exists, own, t, column)


@triton.jit(  # a size of 1 would be a constant, which has no methods
    do_not_specialize=[
        *("rows", "num_images", "num_targets", "runs"),
        *("grid_height", "grid_width", "height", "width"),
    ]
)
def visit(
    logits,  # [N, T, h, w]
    pixels,  # [B, H, W] uint16, or [B, T, H, W] uint8 (OVERLAPPING)
    cover,  # [B, H, W] uint8: pixels that some mask covers (OVERLAPPING and IGNORE_VOID)
    pixel_counts,  # [B] int64: pixels that count (IGNORE_VOID)
    valid,  # [N, T] uint8
    partial,  # [3, N, runs, T (w + 1)] float32: cost / ln 2, o, r inside
    images,  # [2, N, T, h, w] float32: slopes of focal and of s
    overlaps,  # [N, T, h, w] float32: of y s
    alpha,
    gamma,
    rows,
    num_images,
    num_targets,
    grid_height,
    grid_width,
    height,
    width,
    chunks,
    runs,
    stride_n,
    stride_t,
    stride_y,
    stride_x,
    OVERLAPPING: tl.constexpr,
    IGNORE_VOID: tl.constexpr,
    SQUARE: tl.constexpr,
    CONVEX: tl.constexpr,
    SLOPES: tl.constexpr,
    SLOTS: tl.constexpr,
    RUN: tl.constexpr,
    LANES: tl.constexpr,
):
    """A lane has a target and an interval of columns; a program, RUN grid rows of LANES lanes.

    grid     (tiles * runs * N): tiles of LANES - 1 among the T (w + 1) lanes of an image and layer,
             and one lane more, which another tile has too, for what flows to its left
    plan     one interval of rows after the other: pixel by pixel the terms, line by line the sums
             over a lane's columns, at the end of the interval the row of cells above is complete.
             A run starts with the interval that the run before ends with. SLOTS columns of an
             interval are unrolled, their weights in registers
    reads    pixels once for each target and layer, neighbours at the same time, so from L1 and L2;
             logits once
    writes   images, overlaps and partial once
    numerics float32 in binary units; exact integer coordinates. A pixel that does not count has
             -z = NOWHERE; a slot without a pixel has its exponential cut there, which costs nothing
    edges    rows that are not valid: zeros, no work; any strides of the logits; offsets int64
    """
    run, n, b, lanes = lanes_of(num_images, num_targets, grid_width, runs, LANES)
    flat, exists, own, t, column = lanes
    row_of_all = n * num_targets + t  # [N T]
    first, numerator = start_of(column, grid_width, width)
    count = count_of(column, first, numerator, width, ratio_of(grid_width, width))
    count = tl.where(tl.load(valid + row_of_all, exists, 0) != 0, count, 0)
    weight, step = weights_of(numerator, column, grid_width, width)
    size = height.to(tl.int64) * width
    line = pixels + (b * num_targets + t if OVERLAPPING else b) * size
    line_cover = cover + b * size
    source = logits + n * stride_n + t.to(tl.int64) * stride_t
    left = source + tl.maximum(column - 1, 0).to(tl.int64) * stride_x
    right = source + tl.minimum(column, grid_width - 1).to(tl.int64) * stride_x
    if IGNORE_VOID:
        pixel_count = tl.maximum(tl.load(pixel_counts + b), 1).to(tl.float32)
    else:
        pixel_count = size.to(tl.float32)
    factors = -alpha / pixel_count, (1.0 - alpha) / pixel_count

    begin = run * RUN
    end = tl.minimum(begin + RUN, grid_height)
    ratio = ratio_of(grid_height, height)
    i, numerator = start_of(begin, grid_height, height)
    columns = first, count, weight, step, t
    base = tl.minimum(first, width - SLOTS) + i.to(tl.int64) * width
    line, line_cover = line + base, line_cover + base
    y = tl.maximum(begin - 1, 0).to(tl.int64) * stride_y
    left, right = left + y, right + y
    low = logits_at(left, right, count)
    cell = (row_of_all * grid_height + begin - 1) * grid_width + column
    image = rows.to(tl.int64) * num_targets * grid_height * grid_width
    next_lane = tl.minimum(tl.arange(0, LANES) + 1, LANES - 1)
    work = tl.max(count) > 0
    empty = tl.full([LANES], EMPTY, tl.float32)
    sums = empty, empty, empty
    focal, sigmoid, inner = (empty, empty), (empty, empty), (empty, empty)  # of the row above
    for interval in range(begin, end + 1):
        if interval > 0 and interval < grid_height:
            left += stride_y
            right += stride_y
        high = logits_at(left, right, count)
        lines = count_of(interval, i, numerator, height, ratio)
        first_down, step_down = weights_of(numerator, interval, grid_height, height)
        focal_below, sigmoid_below, inner_below = (empty, empty), (empty, empty), (empty, empty)
        for k in range(tl.where(work, lines, 0)):
            down = first_down + k * step_down
            ends = low[0] + down * (high[0] - low[0]), low[1] + down * (high[1] - low[1])
            sums, of_focal, of_sigmoid, of_inner = visit_line(
                ends, line, line_cover, columns, sums, factors, gamma, width, chunks,
                OVERLAPPING, IGNORE_VOID, SQUARE, CONVEX, SLOPES, SLOTS,
            )  # fmt: skip
            if SLOPES:
                focal, focal_below = row_sums(focal, focal_below, of_focal, down)
                sigmoid, sigmoid_below = row_sums(sigmoid, sigmoid_below, of_sigmoid, down)
                inner, inner_below = row_sums(inner, inner_below, of_inner, down)
            line += width
            line_cover += width
        if SLOPES and interval > begin:
            store = own & (column < grid_width)
            tl.store(images + cell, of_cells(focal, focal_below, next_lane), store)
            tl.store(images + image + cell, of_cells(sigmoid, sigmoid_below, next_lane), store)
            tl.store(overlaps + cell, of_cells(inner, inner_below, next_lane), store)
        cell += grid_width
        new = (interval > begin) | (begin == 0)  # else the run before has this interval
        sums = keep(sums[0], new), keep(sums[1], new), keep(sums[2], new)
        focal, sigmoid, inner, low = focal_below, sigmoid_below, inner_below, high
        i += lines
        numerator += 2 * (grid_height * lines - height)

    row_lanes = num_targets * (grid_width + 1)
    results = partial + (n * runs + run) * row_lanes + flat
    part = rows.to(tl.int64) * runs * row_lanes
    for k in tl.static_range(3):
        tl.store(results + k * part, sums[k], own)


@triton.jit(do_not_specialize=["num_targets", "part", "runs"])
def finish(
    partial,  # [3, N, runs, T (w + 1)]
    focal,  # [N, T]
    dice,  # [N, T]
    images,  # [2, N, T, h, w]: the second becomes the slope of dice
    overlaps,  # [N, T, h, w]
    num_targets,
    part,
    runs,
    intervals,
    cells,
    SLOPES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Losses of a row of [N T], and d dice / dx from the images of s and y s.

    grid     (N * T)
    reads    the row's part of partial, twice its images;  writes  one image
    numerics float32; sums by lane, then over lanes: always in the same order
    """
    row = tl.program_id(0).to(tl.int64)
    source = partial + row // num_targets * runs * num_targets * intervals
    source += row % num_targets * intervals
    part = part.to(tl.int64)
    lane = tl.arange(0, BLOCK)
    costs = tl.zeros([BLOCK], tl.float32)
    wrongs, overlap = costs, costs
    for start in range(0, runs * intervals, BLOCK):
        k = start + lane
        at = (k // intervals).to(tl.int64) * num_targets * intervals + k % intervals
        there = k < runs * intervals
        costs += tl.load(source + at, there, 0.0)
        wrongs += tl.load(source + part + at, there, 0.0)
        overlap += tl.load(source + 2 * part + at, there, 0.0)
    wrong, numerator = tl.sum(wrongs), 2.0 * tl.sum(overlap) + 1.0
    denominator = numerator + wrong
    tl.store(focal + row, tl.sum(costs) * LN_2)
    tl.store(dice + row, wrong / denominator)
    if SLOPES:
        of_sigmoid = numerator / denominator / denominator
        of_overlap = 2.0 / denominator
        image = images + (tl.num_programs(0).to(tl.int64) + row) * cells
        for start in range(0, cells, BLOCK):
            k = start + lane
            sigmoid = tl.load(image + k, k < cells, 0.0)
            inner = tl.load(overlaps + row * cells + k, k < cells, 0.0)
            tl.store(image + k, of_sigmoid * sigmoid - of_overlap * inner, k < cells)


@triton.jit(do_not_specialize=["rows"])
def weighted_sum(
    grad_focal,  # [N T]
    grad_dice,  # [N T]
    slopes,  # [2, N T, cells] float32
    result,  # [N T, cells]
    rows,
    cells,
    BLOCK: tl.constexpr,
):
    """The backward pass: grad_focal * slopes[0] + grad_dice * slopes[1].

    grid     (cdiv(cells, BLOCK) * N * T)
    reads    slopes once;  writes  result once, in its dtype
    """
    blocks = tl.cdiv(cells, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    k = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    source = slopes + row * cells + k
    of_focal = tl.load(source, k < cells, 0.0)
    of_dice = tl.load(source + rows.to(tl.int64) * cells, k < cells, 0.0)
    grad = tl.load(grad_focal + row) * of_focal + tl.load(grad_dice + row) * of_dice
    tl.store(result + row * cells + k, grad.to(result.dtype.element_ty), k < cells)


def forward(
    mask_logits: Tensor,
    pixels: Tensor,
    valid: Tensor,
    alpha: float,
    gamma: float,
    ignore_void: bool,
    with_slopes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Focal, dice [N, T] and slopes [2, N, T, h, w] ([2, 0] if not wanted): the op mask_loss."""
    n, t, h, w = mask_logits.shape
    height, width = pixels.shape[-2:]
    if 0 in mask_logits.shape or 0 in pixels.shape:
        slopes = mask_logits.new_zeros(
            (2, n, t, h, w) if with_slopes else (2, 0), dtype=torch.float32
        )
        focal, dice = (mask_logits.new_zeros(n, t, dtype=torch.float32) for _ in range(2))
        return focal, dice, slopes
    overlapping, pixels = pixels.dtype == torch.bool, pixels.contiguous()
    cover, counts = _counted(pixels) if ignore_void else (pixels, pixels)
    config = _configuration(mask_logits)
    runs, lanes = triton.cdiv(h, config["RUN"]), t * (w + 1)
    partial = mask_logits.new_empty(3, n, runs, lanes, dtype=torch.float32)
    focal, dice = (partial.new_empty(n, t) for _ in range(2))
    slopes = partial.new_empty((2, n, t, h, w) if with_slopes else (2, 0))
    overlaps = partial.new_empty((n, t, h, w) if with_slopes else (0,))
    most = triton.cdiv(width, w)  # columns of an interval
    chunks = triton.cdiv(most, MOST_SLOTS)
    launch(
        visit,
        (triton.cdiv(lanes, config["LANES"] - 1) * runs * n,),
        config,
        mask_logits,
        pixels.view(torch.uint8 if overlapping else torch.uint16),
        cover.view(torch.uint8),
        counts,
        valid.contiguous().view(torch.uint8),
        partial,
        slopes,
        overlaps,
        alpha,
        gamma,
        n,
        len(pixels),
        t,
        h,
        w,
        height,
        width,
        chunks,
        runs,
        *mask_logits.stride(),
        OVERLAPPING=overlapping,
        IGNORE_VOID=ignore_void,
        SQUARE=gamma == SQUARE,
        CONVEX=alpha <= 1,
        SLOPES=with_slopes,
        SLOTS=triton.cdiv(most, chunks),
    )
    _finish(partial, focal, dice, slopes, overlaps, h * w)
    return focal, dice, slopes


def _counted(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Void leaves: the pixels that some mask covers [B, H, W], and how many count [B]."""
    if pixels.dtype == torch.bool:
        cover = pixels.any(1)
        return cover, cover.sum((1, 2))
    return pixels, (pixels >= 0).sum((1, 2))


def _configuration(mask_logits: Tensor) -> Config:
    """ "many": there are enough rows for long runs, which repeat fewer intervals."""
    n, t, h, w = mask_logits.shape
    many = configuration("mask_loss.visit", "many", mask_logits.device)
    programs = n * triton.cdiv(t * (w + 1), many["LANES"] - 1) * triton.cdiv(h, many["RUN"])
    if programs >= FEW_PROGRAMS:
        return many
    return configuration("mask_loss.visit", "few", mask_logits.device)


def _finish(
    partial: Tensor, focal: Tensor, dice: Tensor, slopes: Tensor, overlaps: Tensor, cells: int
) -> None:
    _, n, runs, lanes = partial.shape
    t = focal.shape[1]
    launch(
        finish,
        (n * t,),
        configuration("mask_loss.finish", "all", focal.device),
        partial,
        focal,
        dice,
        slopes,
        overlaps,
        t,
        n * runs * lanes,
        runs,
        lanes // t,
        cells,
        SLOPES=overlaps.numel() > 0,
    )


def backward(grad_focal: Tensor, grad_dice: Tensor, slopes: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient [N, T, h, w] of the logits, in their dtype: the op mask_loss_backward."""
    _, n, t, h, w = slopes.shape
    result = slopes.new_empty(n, t, h, w, dtype=dtype)
    config = configuration("mask_loss.weighted_sum", "all", slopes.device)
    launch(
        weighted_sum,
        (triton.cdiv(h * w, config["BLOCK"]) * n * t,),
        config,
        grad_focal.contiguous(),
        grad_dice.contiguous(),
        slopes,
        result,
        n * t,
        h * w,
    )
    return result
