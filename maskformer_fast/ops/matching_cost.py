"""matching_cost: what it costs to match each target with each query, for the assignment.

    y     target at the mask grid, nearest: pixel (i*H)//h, (j*W)//w
    focal ( sum_p y (pos - neg) + sum_p neg ) / P              pos, neg: see focal.py
    dice  1 - (2 sum_p y s + 1) / (sum_p s + sum_p y + 1)
    class -softmax(class_logits)[q, label_t]
    cost  class_weight*class + mask_weight*focal + dice_weight*dice

With `ignore_void`, void pixels leave every sum and P (P = 0 gives 0 for focal). Padding rows are 0.
(Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation", 2021.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskformer_fast.ops import checks
from maskformer_fast.ops.floats import float_type
from maskformer_fast.ops.focal import focal_terms
from maskformer_fast.ops.mask_logits import reference as mask_logits_reference
from maskformer_fast.ops.precision import ieee_float32
from maskformer_fast.ops.registry import compiled_module, register, resolve, triton_backend
from maskformer_fast.targets import Targets

TILE_CELLS = 4096  # of the mask grid, whose logits are held at a time


class Weights(NamedTuple):
    """The numbers of a cost, in the order of the ops' schemas."""

    class_weight: float
    mask_weight: float
    dice_weight: float
    alpha: float
    gamma: float
    ignore_void: bool


WEIGHTS_SCHEMA = (
    "float class_weight, float mask_weight, float dice_weight,"
    " float alpha, float gamma, bool ignore_void, str backend"
)


def masks_at_grid(pixels: Tensor, num_targets: int, grid: tuple[int, int]) -> Tensor:
    """Targets' masks [B, T, h, w] bool at grid cells (i, j): pixel ((i*H)//h, (j*W)//w)."""
    sides = zip(pixels.shape[-2:], grid, strict=True)
    rows, columns = (
        torch.arange(cells, device=pixels.device) * side // cells for side, cells in sides
    )
    sampled = pixels[..., rows[:, None], columns]
    if pixels.dtype == torch.bool:
        return sampled
    index = torch.arange(num_targets, device=pixels.device, dtype=pixels.dtype)
    return sampled[:, None] == index[:, None, None]


def reference_from_logits(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    num_targets: Tensor,
    pixels: Tensor,
    *weights: Any,
) -> Tensor:
    """[B, Q, K+1], [B, Q, h, w] -> [B, T, Q]; computed in float32 (float64 stays float64)."""
    w = Weights(*weights)
    compute = torch.promote_types(mask_logits.dtype, torch.float32)
    b, t = labels.shape
    masks = masks_at_grid(pixels, t, (mask_logits.shape[2], mask_logits.shape[3]))
    y = masks.flatten(2).to(compute)  # [B, T, P]
    pos, neg, s = focal_terms(mask_logits.to(compute).flatten(2), w.alpha, w.gamma)  # [B, Q, P]
    pixel_count = torch.full((b, 1, 1), y.shape[2], dtype=compute, device=y.device)
    if w.ignore_void:
        counted = masks.flatten(2).any(1, keepdim=True)  # [B, 1, P]
        pos, neg, s = (torch.where(counted, term, 0) for term in (pos, neg, s))
        pixel_count = counted.sum(2, keepdim=True).clamp(min=1).to(compute)
    with ieee_float32(mask_logits.device):
        sums = Sums(y @ (pos - neg).mT, y @ s.mT, neg.sum(2), s.sum(2), y.sum(2), pixel_count)
    return _cost(class_logits, labels, num_targets, sums, w).to(_result_dtype(mask_logits))


class Sums(NamedTuple):
    """What a cost is made of: sums over the pixels that count."""

    focal_overlap: Tensor  # [..., B, T, Q] y (pos - neg)
    overlap: Tensor  # [..., B, T, Q] y s
    neg: Tensor  # [..., B, Q]
    sigmoid: Tensor  # [..., B, Q]
    area: Tensor  # [B, T] y
    pixel_count: Tensor  # [B, 1, 1] at least 1


def _cost(
    class_logits: Tensor, labels: Tensor, num_targets: Tensor, sums: Sums, w: Weights
) -> Tensor:
    """[..., B, Q, K+1], [B, T], [B] -> [..., B, T, Q]."""
    focal = (sums.focal_overlap + sums.neg[..., None, :]) / sums.pixel_count
    union = sums.sigmoid[..., None, :] + sums.area[..., None]
    dice = 1 - (2 * sums.overlap + 1) / (union + 1)
    compute = torch.promote_types(class_logits.dtype, torch.float32)
    probs = class_logits.to(compute).softmax(-1).mT  # [..., B, K+1, Q]
    is_target = torch.arange(labels.shape[1], device=labels.device) < num_targets[:, None]
    index = torch.where(is_target, labels, 0)  # padding may hold anything
    class_cost = -probs.gather(-2, index[..., None].expand(dice.shape))
    cost = w.class_weight * class_cost + w.mask_weight * focal + w.dice_weight * dice
    return torch.where(is_target[..., None], cost, 0)


def reference(
    class_logits: Tensor,
    mask_queries: Tensor,
    pixel_features: Tensor,
    labels: Tensor,
    num_targets: Tensor,
    pixels: Tensor,
    *weights: Any,
) -> Tensor:
    """[L, B, Q, K+1], [L, B, Q, C], [B, C, h, w] -> [L, B, T, Q], layer by layer."""
    compute = torch.promote_types(mask_queries.dtype, torch.float32)
    cost = _fake(class_logits, mask_queries, pixel_features, labels, num_targets, pixels, *weights)
    for layer, (logits, queries) in enumerate(zip(class_logits, mask_queries, strict=True)):
        masks = mask_logits_reference(queries.to(compute), pixel_features.to(compute), False)
        cost[layer] = reference_from_logits(logits, masks, labels, num_targets, pixels, *weights)
    return cost


class _Runs(NamedTuple):
    """One image's targets at the mask grid as runs of cells, for the compiled module."""

    number: int
    cell: Tensor  # [h * w + 1] int32: where each run begins, then h * w
    first: Tensor  # [h * w + 1] int32: where each run's targets start in `target`
    target: Tensor  # int16

    @classmethod
    def of(cls, pixels: Tensor, grid: tuple[int, int], area: Tensor) -> _Runs:
        """pixels [H, W] int16 or [T, H, W] bool; grid h, w.

        Fills area [T + 1] float64: the cells of each target, then those of any.
        """
        overlapping, targets = pixels.dtype == torch.bool, len(area) - 1
        pixels, cells = pixels.contiguous(), grid[0] * grid[1]
        cell, first = torch.empty(2, cells + 1, dtype=torch.int32).unbind()
        target = torch.empty(cells * (targets if overlapping else 1), dtype=torch.int16)
        number = compiled_module().grid_targets(
            pixels=pixels.data_ptr(),
            overlapping=overlapping,
            cell=cell.data_ptr(),
            first=first.data_ptr(),
            target=target.data_ptr(),
            area=area.data_ptr(),
            sizes=(targets, *pixels.shape[-2:], *grid),
        )
        return cls(number, cell, first, target)

    def add_sums(
        self, sums: Tensor, logits: Tensor, cells: slice, cells_first: bool, w: Weights
    ) -> None:
        """Add the terms of some cells to sums [2 T + 2, Q] float64.

        logits [Q, cells] with rows apart as they are, or [cells, Q padded] float32.
        """
        rows, queries = sums.shape
        number, targets = cells.stop - cells.start, (rows - 2) // 2
        compiled_module().matching_sums(
            logits=logits.data_ptr(),
            type=float_type(logits),
            cells_first=cells_first,
            cell=self.cell.data_ptr(),
            first=self.first.data_ptr(),
            target=self.target.data_ptr(),
            sums=sums.data_ptr(),
            sizes=(queries, logits.stride(0), cells.start, number, targets, self.number),
            alpha=w.alpha,
            gamma=w.gamma,
            ignore_void=w.ignore_void,
            threads=torch.get_num_threads(),
        )


def _finish(
    cost: Tensor,
    class_logits: Tensor,
    labels: Tensor,
    num_targets: Tensor,
    sums: Tensor,
    area: Tensor,
    cells: int,
    w: Weights,
) -> Tensor:
    """Fill cost [L, B, T, Q] from class_logits [L, B, Q, K+1] and sums [B, 2 T + 2, L * Q]."""
    layers, b, t, q = cost.shape
    probs = class_logits.float().softmax(-1).contiguous()
    labels, num_targets = labels.contiguous(), num_targets.contiguous()
    compiled_module().matching_cost(
        probs=probs.data_ptr(),
        labels=labels.data_ptr(),
        num_targets=num_targets.data_ptr(),
        sums=sums.data_ptr(),
        area=area.data_ptr(),
        cost=cost.data_ptr(),
        sizes=(layers, b, q, t, cells, probs.shape[3]),
        weights=(w.class_weight, w.mask_weight, w.dice_weight),
        ignore_void=w.ignore_void,
    )
    return cost


def compiled_from_logits(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    num_targets: Tensor,
    pixels: Tensor,
    *weights: Any,
) -> Tensor:
    """As `reference_from_logits`, in C++: csrc/cpu/matching_cost.cpp."""
    w = Weights(*weights)
    cost = _fake_from_logits(class_logits, mask_logits, labels)
    if cost.numel() == 0:
        return cost
    b, q, h, width = mask_logits.shape
    t, cells = labels.shape[1], h * width
    sums = torch.zeros(b, 2 * t + 2, q, dtype=torch.float64)
    area = torch.empty(b, t + 1, dtype=torch.float64)
    for image, logits in enumerate(mask_logits.contiguous().flatten(2)):
        runs = _Runs.of(pixels[image], (h, width), area[image])
        runs.add_sums(sums[image], logits, slice(0, cells), False, w)
    _finish(cost[None], class_logits[None], labels, num_targets, sums, area, cells, w)
    return cost


def compiled(
    class_logits: Tensor,
    mask_queries: Tensor,
    pixel_features: Tensor,
    labels: Tensor,
    num_targets: Tensor,
    pixels: Tensor,
    *weights: Any,
) -> Tensor:
    """As `reference`; logits of all layers by torch's matmul, TILE_CELLS cells at a time."""
    w = Weights(*weights)
    cost = _fake(class_logits, mask_queries, pixel_features, labels)
    if cost.numel() == 0:
        return cost
    layers, b, q, c = mask_queries.shape
    t, (h, width) = labels.shape[1], pixel_features.shape[2:]
    sums = torch.zeros(b, 2 * t + 2, layers * q, dtype=torch.float64)
    area = torch.empty(b, t + 1, dtype=torch.float64)
    block = compiled_module().query_block
    for image in range(b):
        runs = _Runs.of(pixels[image], (h, width), area[image])
        queries = mask_queries[:, image].reshape(layers * q, c).float()
        queries = F.pad(queries, (0, 0, 0, -len(queries) % block))
        features = pixel_features[image].flatten(1)  # [C, h * w]
        for start in range(0, h * width, TILE_CELLS):
            cells = slice(start, min(start + TILE_CELLS, h * width))
            with ieee_float32(queries.device):
                logits = features[:, cells].float().T @ queries.T
            runs.add_sums(sums[image], logits, cells, True, w)
    return _finish(cost, class_logits, labels, num_targets, sums, area, h * width, w)


def _result_dtype(inputs: Tensor) -> torch.dtype:
    return torch.promote_types(inputs.dtype, torch.float32)


def _fake(
    class_logits: Tensor, mask_queries: Tensor, _: Tensor, labels: Tensor, *__: object
) -> Tensor:
    layers, b, q, _c = mask_queries.shape
    return mask_queries.new_empty(layers, b, labels.shape[1], q, dtype=_result_dtype(mask_queries))


def _fake_from_logits(_: Tensor, mask_logits: Tensor, labels: Tensor, *__: object) -> Tensor:
    b, q = mask_logits.shape[:2]
    return mask_logits.new_empty(b, labels.shape[1], q, dtype=_result_dtype(mask_logits))


_from_embeddings = register(
    "matching_cost",
    "(Tensor class_logits, Tensor mask_queries, Tensor pixel_features, Tensor labels,"
    f" Tensor num_targets, Tensor pixels, {WEIGHTS_SCHEMA}) -> Tensor",
    fake=_fake,
    backends={
        "reference": reference,
        "cpu": compiled,
        "triton": triton_backend("matching_cost", "from_embeddings"),
    },
)
_from_logits = register(
    "matching_cost_from_logits",
    "(Tensor class_logits, Tensor mask_logits, Tensor labels, Tensor num_targets,"
    f" Tensor pixels, {WEIGHTS_SCHEMA}) -> Tensor",
    fake=_fake_from_logits,
    backends={
        "reference": reference_from_logits,
        "cpu": compiled_from_logits,
        "triton": triton_backend("matching_cost", "from_logits"),
    },
)


def matching_cost(
    class_logits: Tensor,
    mask_queries: Tensor,
    pixel_features: Tensor,
    targets: Targets,
    *,
    class_weight: float = 1,
    mask_weight: float = 20,
    dice_weight: float = 1,
    alpha: float = 0.25,
    gamma: float = 2,
    ignore_void: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Cost of every pair of target and query, for all decoder layers at once; no gradient.

    class_logits    [L, B, Q, K+1]  the last class is "no object"
    mask_queries    [L, B, Q, C]    mask logits are mask_queries . pixel_features, never stored
    pixel_features  [B, C, h, w]
    targets         Targets of B images
    returns         [L, B, T, Q] float32; rows past an image's num_targets are 0

    Inputs are float32, float16, bfloat16 (float64: reference, result float64), of one dtype.
    Non-finite logits give non-finite costs: `linear_assignment` deals with them.
    Raises TypeError or ValueError naming the argument that is off.
    """
    weights = Weights(class_weight, mask_weight, dice_weight, alpha, gamma, ignore_void)
    sizes = checks.Sizes()
    checks.tensor("mask_queries", mask_queries, "L B Q C", sizes)
    checks.tensor("class_logits", class_logits, "L B Q K+1", sizes, like=mask_queries)
    checks.tensor("pixel_features", pixel_features, "B C h w", sizes, like=mask_queries)
    _check_options(weights, sizes, targets, mask_queries)
    chosen = resolve("matching_cost", backend, mask_queries.device.type, mask_queries.dtype)
    return _from_embeddings(
        class_logits.detach(),
        mask_queries.detach(),
        pixel_features.detach(),
        targets.labels,
        targets.num_targets,
        targets.pixels,
        *weights,
        chosen,
    )


def matching_cost_from_logits(
    class_logits: Tensor,
    mask_logits: Tensor,
    targets: Targets,
    *,
    class_weight: float = 1,
    mask_weight: float = 20,
    dice_weight: float = 1,
    alpha: float = 0.25,
    gamma: float = 2,
    ignore_void: bool = False,
    backend: str = "auto",
) -> Tensor:
    """`matching_cost` of one layer for callers who have the mask logits.

    class_logits  [B, Q, K+1]
    mask_logits   [B, Q, h, w]
    returns       [B, T, Q] float32
    """
    weights = Weights(class_weight, mask_weight, dice_weight, alpha, gamma, ignore_void)
    sizes = checks.Sizes()
    checks.tensor("mask_logits", mask_logits, "B Q h w", sizes)
    checks.tensor("class_logits", class_logits, "B Q K+1", sizes, like=mask_logits)
    _check_options(weights, sizes, targets, mask_logits)
    chosen = resolve(
        "matching_cost_from_logits", backend, mask_logits.device.type, mask_logits.dtype
    )
    return _from_logits(
        class_logits.detach(),
        mask_logits.detach(),
        targets.labels,
        targets.num_targets,
        targets.pixels,
        *weights,
        chosen,
    )


def _check_options(weights: Weights, sizes: checks.Sizes, targets: Targets, like: Tensor) -> None:
    checks.queries("class_logits", sizes)
    checks.targets(targets, sizes, like)
    checks.at_least("alpha", weights.alpha, 0)
    checks.at_least("gamma", weights.gamma, 0)
    for name in ("class_weight", "mask_weight", "dice_weight"):
        checks.at_least(name, getattr(weights, name), 0)
