"""matching_cost in Triton: all layers and images in three launches, whose logits stay on the chip.

`sample` reads the targets at the mask grid, once, into bits; `sums` (matching_sums.py) adds up
fixed parts of the pixels; `finish` adds the parts in order and makes the cost.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskformer_fast.kernels.launch import aligned, configuration, launch
from maskformer_fast.kernels.mask_logits import PRECISION
from maskformer_fast.kernels.matching_sums import BITS, sums

SPLIT = (torch.float16, torch.bfloat16)  # inputs whose terms are summed on tensor cores
RESIDENT_CHANNELS = 256  # of half queries, which fit shared memory
PROGRAMS = 1024  # of `sums`, at least, where there are pixels enough
WORKSPACE = 64 << 20  # bytes, that more parts of the pixels must not exceed


@triton.jit(do_not_specialize=["targets"])
def sample(
    pixels,  # segments [B, H, W] int16, or masks [B, T, H, W] uint8
    words,  # [B, planes, P] int32: y of target t is bit t % 32 of plane t // 32
    areas,  # [B, runs, 32 planes] int32: cells of each target in a run
    targets,
    cells,
    grid_height,
    grid_width,
    height,
    width,
    stride_b,
    stride_t,
    stride_y,
    stride_x,
    MASKS: tl.constexpr,
    IGNORE_VOID: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Targets at the mask grid: pixel ((i*H)//h, (j*W)//w) of cell (i, j).

    grid     (cdiv(P, BLOCK_P), B): a run of cells each
    reads    the pixels of the grid, once; segments through int16, masks plane by plane
    writes   words and areas once
    edges    p >= P and t >= T masked; coordinates and offsets int64
    """
    run, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    p = run * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = p < cells
    bits = tl.arange(0, BITS)
    row, column = p // grid_width * height // grid_height, p % grid_width * width // grid_width
    at = pixels + b * stride_b + row * stride_y + column * stride_x
    planes = targets // BITS + 1
    words += b * planes * cells + p
    areas += (b * tl.num_programs(0) + run) * planes * BITS
    covered = tl.zeros((BLOCK_P,), tl.int32)
    if not MASKS:
        segment = tl.load(at, inside, -1).to(tl.int32)
    for plane in range(planes):
        t = plane * BITS + bits
        known = inside[:, None] & (t < targets)[None]
        if MASKS:
            found = tl.load(at[:, None] + t.to(tl.int64)[None] * stride_t, known, 0)
            y = (found != 0).to(tl.int32)
        else:
            y = (known & (segment[:, None] == t[None])).to(tl.int32)
        covered |= tl.max(y, 1)
        counted = inside
        if IGNORE_VOID:
            counted &= covered != 0
        y += (counted[:, None] & (t == targets)[None]).to(tl.int32)
        tl.store(words, tl.sum(y << bits[None], 1).to(tl.int32), inside)
        tl.store(areas + t, tl.sum(y, 0).to(tl.int32))
        words += cells


@triton.jit
def added_parts(parts, part, rows, targets, splits, t, m, m_in, BLOCK: tl.constexpr):
    """parts [splits, 2 (T + 1) + 1, M], `part` items apart, added in a fixed order: both sums of
    targets t and rows m, then the rows' sums of s over the whole image and of neg."""
    split = tl.arange(0, BLOCK).to(tl.int64)
    t_in = (t < targets)[None, :, None]
    after = (targets + 1) * rows
    sums_focal = tl.zeros((t.shape[0], m.shape[0]), tl.float32)
    sums_s = tl.zeros((t.shape[0], m.shape[0]), tl.float32)
    sum_s = tl.zeros((m.shape[0],), tl.float32)
    sum_neg = tl.zeros((m.shape[0],), tl.float32)
    for start in range(0, splits, BLOCK):
        each = parts + ((start + split) * part)[:, None] + m[None]
        known = (start + split < splits)[:, None] & m_in[None]
        sum_s += tl.sum(tl.load(each + after + targets * rows, known, 0.0), 0)
        sum_neg += tl.sum(tl.load(each + 2 * after, known, 0.0), 0)
        each = each[:, None] + (t * rows)[None, :, None]
        known = known[:, None] & t_in
        sums_focal += tl.sum(tl.load(each, known, 0.0), 0)
        sums_s += tl.sum(tl.load(each + after, known, 0.0), 0)
    return sums_focal, sums_s, sum_s, sum_neg


@triton.jit
def added_areas(areas, runs, targets, t, BLOCK: tl.constexpr):
    """areas [runs, 32 planes] added: cells of targets t, and of the whole image."""
    run = tl.arange(0, BLOCK).to(tl.int64)
    area = tl.zeros((t.shape[0],), tl.int32)
    counted = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, runs, BLOCK):
        known = start + run < runs
        at = areas + (start + run) * (targets // BITS + 1) * BITS
        found = tl.load(at[:, None] + t[None], known[:, None] & (t < targets)[None], 0)
        area += tl.sum(found, 0).to(tl.int32)
        counted += tl.load(at + targets, known, 0)
    return area.to(tl.float32), tl.sum(counted, 0).to(tl.float32)


@triton.jit
def softmax_sums(logits, q_in, classes, stride, BLOCK: tl.constexpr):
    """Of rows of logits, from `logits` on: the largest, and the sum of exp(logit - largest)."""
    k = tl.arange(0, BLOCK).to(tl.int64)
    largest = tl.full(q_in.shape, float("-inf"), tl.float32)
    for start in range(0, classes, BLOCK):
        known = q_in[:, None] & (start + k < classes)[None]
        found = tl.load(logits[:, None] + (start + k)[None] * stride, known, float("-inf"))
        largest = tl.maximum(largest, tl.max(found.to(tl.float32), 1))
    total = tl.zeros(q_in.shape, tl.float32)
    for start in range(0, classes, BLOCK):
        known = q_in[:, None] & (start + k < classes)[None]
        found = tl.load(logits[:, None] + (start + k)[None] * stride, known, 0.0)
        each = tl.exp(found.to(tl.float32) - largest[:, None])
        total += tl.sum(tl.where(known, each, 0.0), 1)
    return largest, total


@triton.jit(
    do_not_specialize=["layers", "layer_rows", "targets", "classes", "splits", "runs", "label_b"]
)
def finish(
    class_logits,  # [L, B, Q, K+1]
    labels,  # [B, T] int64
    num_targets,  # [B] int32
    parts,  # [splits, B, 2 (T + 1) + 1, M] float32
    areas,  # [B, runs, 32 planes] int32
    cost,  # [L, B, T, Q] float32
    layers,
    layer_rows,  # Q
    targets,
    classes,  # K+1
    splits,
    runs,
    class_weight,
    mask_weight,
    dice_weight,
    beta,
    class_l,
    class_b,
    class_q,
    class_k,
    label_b,
    label_t,
    count_b,
    BLOCK_Q: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_RUNS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """One program = BLOCK_T targets x BLOCK_Q queries of one layer and image.

    grid     (cdiv(Q, BLOCK_Q) * cdiv(T, BLOCK_T) * L, B)
    reads    parts once; areas and class logits once per block of queries or targets
    writes   cost once; rows past num_targets are 0
    numerics float32, in a fixed order; areas are exact
    edges    q >= Q, t >= T, k > K masked; labels of padding are not read; offsets int64
    """
    query_blocks, target_blocks = tl.cdiv(layer_rows, BLOCK_Q), tl.cdiv(targets, BLOCK_T)
    column = tl.program_id(0) // query_blocks
    b, images = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    layer = (column // target_blocks).to(tl.int64)
    q = (tl.program_id(0) % query_blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)).to(tl.int64)
    t = (column % target_blocks * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    q_in, t_in = q < layer_rows, t < targets

    rows, kinds = layer_rows.to(tl.int64) * layers, (targets + 1).to(tl.int64)
    part = (2 * kinds + 1) * rows
    m = layer * layer_rows + q
    parts += b * part
    sums_focal, sums_s, sum_s, sum_neg = added_parts(
        parts, images * part, rows, kinds - 1, splits, t, m, q_in, BLOCK_SPLITS
    )
    areas += b * runs * (targets // BITS + 1) * BITS
    area, counted = added_areas(areas, runs, kinds - 1, t, BLOCK_RUNS)
    focal = (sums_focal + beta * sum_neg[None]) / tl.maximum(counted, 1.0)
    dice = 1.0 - (2.0 * sums_s + 1.0) / (sum_s[None] + area[:, None] + 1.0)

    from_class = class_logits + layer * class_l + b * class_b + q * class_q
    largest, total = softmax_sums(from_class, q_in, classes, class_k, BLOCK_K)
    is_target = t_in & (t < tl.load(num_targets + b * count_b))
    label = tl.load(labels + b * label_b + t * label_t, is_target, 0)
    at = from_class[None] + label[:, None] * class_k
    known = is_target & (label >= 0) & (label < classes)  # another label makes the cost NaN
    logit = tl.load(at, known[:, None] & q_in[None], float("nan")).to(tl.float32)
    probability = tl.exp(logit - largest[None]) / total[None]

    result = mask_weight * focal + dice_weight * dice - class_weight * probability
    result = tl.where(is_target[:, None], result, 0.0)
    into = cost + ((layer * images + b) * targets + t[:, None]) * layer_rows + q[None]
    tl.store(into, result, t_in[:, None] & q_in[None])


def from_embeddings(
    class_logits: Tensor,
    mask_queries: Tensor,
    pixel_features: Tensor,
    labels: Tensor,
    num_targets: Tensor,
    pixels: Tensor,
    *weights: Any,
) -> Tensor:
    """[L, B, Q, K+1], [L, B, Q, C], [B, C, h, w] -> [L, B, T, Q]: the op matching_cost."""
    ground_truth = (labels, num_targets, pixels)
    return _cost(class_logits, mask_queries, pixel_features, *ground_truth, "features", *weights)


def from_logits(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    num_targets: Tensor,
    pixels: Tensor,
    *weights: Any,
) -> Tensor:
    """[B, Q, K+1], [B, Q, h, w] -> [B, T, Q]: the op matching_cost_from_logits."""
    layer = (class_logits[None], mask_logits[None, ..., 0], mask_logits)
    return _cost(*layer, labels, num_targets, pixels, "logits", *weights)[0]


def _cost(
    class_logits: Tensor,  # [L, B, Q, K+1]
    queries: Tensor,  # [L, B, Q, C]; for "logits" only L, B and Q matter
    features: Tensor,  # [B, C, h, w]; the logits for "logits"
    labels: Tensor,
    num_targets: Tensor,
    pixels: Tensor,
    source: str,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
    alpha: float,
    gamma: float,
    ignore_void: bool,
) -> Tensor:
    layers, b, q = queries.shape[:3]
    t, height, width = labels.shape[1], *features.shape[2:]
    cost = features.new_empty(layers, b, t, q, dtype=torch.float32)
    if cost.numel() == 0:
        return cost
    words, areas = _sample(pixels, t, (height, width), ignore_void)
    scales = (math.sqrt(alpha * math.log(2)), (1 - alpha) * math.log(2), float(gamma))
    parts = _sums(queries, features, words, t, source, scales, ignore_void)
    config = configuration("matching_cost.finish", "any", cost.device)
    blocks = triton.cdiv(q, config["BLOCK_Q"]) * triton.cdiv(t, config["BLOCK_T"])
    launch(
        finish,
        (blocks * layers, b),
        config,
        class_logits,
        labels,
        num_targets,
        parts,
        areas,
        cost,
        layers,
        q,
        t,
        class_logits.shape[3],
        parts.shape[0],
        areas.shape[1],
        float(class_weight),
        float(mask_weight),
        float(dice_weight),
        scales[1],
        *class_logits.stride(),
        *labels.stride(),
        num_targets.stride(0),
    )
    return cost


def _sample(
    pixels: Tensor, targets: int, grid: tuple[int, int], ignore_void: bool
) -> tuple[Tensor, Tensor]:
    """words [B, planes, h * w] and areas [B, runs, 32 planes] of `sample`."""
    masks = pixels.dtype == torch.bool
    pixels = pixels.view(torch.uint8) if masks else pixels[:, None]
    b, _, height, width = pixels.shape
    config = configuration("matching_cost.sample", "masks" if masks else "segments", pixels.device)
    cells, planes = grid[0] * grid[1], targets // BITS.value + 1
    runs = triton.cdiv(cells, config["BLOCK_P"])
    words = pixels.new_empty(b, planes, cells, dtype=torch.int32)
    areas = pixels.new_empty(b, runs, BITS.value * planes, dtype=torch.int32)
    sizes = (targets, cells, *grid, height, width)
    options = {"MASKS": masks, "IGNORE_VOID": ignore_void}
    launch(sample, (runs, b), config, pixels, words, areas, *sizes, *pixels.stride(), **options)
    return words, areas


def _sums(
    queries: Tensor,
    features: Tensor,
    words: Tensor,
    targets: int,
    source: str,
    scales: tuple[float, float, float],
    ignore_void: bool,
) -> Tensor:
    """parts [splits, B, 2 (T + 1) + 1, L * Q] of `sums`."""
    layers, b, q, channels = queries.shape
    features, cells = features.flatten(2), words.shape[2]
    half = features.dtype in SPLIT
    kinds = targets + 1
    number = "few" if kinds <= 32 else "many"
    fits = channels <= RESIDENT_CHANNELS and aligned(queries, features, channels, cells)
    if source == "features" and half and not fits:
        number = "wide"
    size_class = f"{source}_{'half' if half else 'float32'}_{number}"
    config = configuration("matching_cost.sums", size_class, features.device)
    rows = layers * q
    blocks = triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(kinds, config["BLOCK_T"])
    part = (b, 2 * kinds + 1, rows)
    splits, tiles = _splits(triton.cdiv(cells, config["BLOCK_P"]), blocks * b, 4 * math.prod(part))
    parts = words.new_empty(splits, *part, dtype=torch.float32)
    launch(
        sums,
        (blocks * splits, b),
        config,
        queries,
        features,
        words,
        parts,
        rows,
        q,
        channels,
        cells,
        targets,
        tiles,
        *scales,
        *queries.stride(),
        *features.stride(),
        FROM_LOGITS=source == "logits",
        SQUARE=scales[2] == 2,
        ALL_COUNT=not ignore_void and cells % config["BLOCK_P"] == 0,
        RESIDENT=source == "features" and channels <= config["BLOCK_C"],
        SPLIT=half,
        PRECISION=PRECISION.get(features.dtype),
    )
    return parts


def _splits(tiles: int, programs: int, size: int) -> tuple[int, int]:
    """Into how many parts the pixels are cut, and how many tiles each has; by the shape alone.

    programs  that a part takes
    size      bytes that a part's sums take
    """
    wanted = min(triton.cdiv(PROGRAMS, programs), max(WORKSPACE // size, 1))
    each = triton.cdiv(tiles, wanted)
    return triton.cdiv(tiles, each), each
