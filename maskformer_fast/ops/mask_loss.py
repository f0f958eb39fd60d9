"""mask_loss: focal and dice loss of matched masks at full size, without full-size tensors.

    x     mask_logits upsampled to H x W (bilinear, align_corners=False)
    y     target at full size, P = H W pixels
    focal ( sum_p y pos + (1 - y) neg ) / P                       pos, neg: see focal.py
    dice  1 - N / D,  N = 2 sum_p y s + 1,  D = sum_p s + sum_p y + 1

With `ignore_void`, void pixels leave every sum and P (no pixel left gives 0 for focal). Backward:

    d focal / dx = ( y pos' + (1 - y) neg' ) / P
    d dice  / dx = (N - 2 y D) / D^2 s (1 - s)

and the adjoint of the upsampling. The reference keeps the full-size masks of one layer of one image
at a time. (Lin et al., "Focal Loss", 2017; Milletari et al., "V-Net", 2016, for dice.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskformer_fast.ops import checks
from maskformer_fast.ops.focal import focal_derivatives, focal_terms
from maskformer_fast.ops.registry import register, resolve
from maskformer_fast.ops.upsample import upsample, upsample_adjoint
from maskformer_fast.targets import Targets


def _full_size(
    mask_logits: Tensor, pixels: Tensor, valid: Tensor, ignore_void: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One row: x and y [T, H, W], what is counted [T, H, W] bool, and P [1], all of full size."""
    compute = torch.promote_types(mask_logits.dtype, torch.float32)
    x = upsample(mask_logits, (pixels.shape[-2], pixels.shape[-1]))
    masks, inside = pixels, pixels.any(0) if pixels.dtype == torch.bool else pixels >= 0
    if pixels.dtype != torch.bool:
        index = torch.arange(len(mask_logits), device=pixels.device, dtype=pixels.dtype)
        masks = pixels == index[:, None, None]
    if not ignore_void:
        inside = torch.ones_like(inside)
    pixel_count = inside.sum().clamp(min=1).to(compute)
    return x, masks.to(compute), inside & valid[:, None, None], pixel_count


def _sum(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0).sum((1, 2))


def _dice_parts(s: Tensor, y: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """N and D of the dice loss, [T]."""
    return 2 * _sum(y * s, counted) + 1, _sum(s, counted) + _sum(y, counted) + 1


def reference(
    mask_logits: Tensor,
    pixels: Tensor,
    valid: Tensor,
    alpha: float,
    gamma: float,
    ignore_void: bool,
) -> tuple[Tensor, Tensor]:
    """[N, T, h, w], pixels of B images, valid [N, T] -> focal, dice [N, T]; float32 or float64."""
    focal, dice = _fake(mask_logits)
    for n, row in enumerate(mask_logits):
        image = pixels[n % len(pixels)]
        x, y, counted, pixel_count = _full_size(row, image, valid[n], ignore_void)
        pos, neg, s = focal_terms(x, alpha, gamma)
        numerator, denominator = _dice_parts(s, y, counted)
        focal[n] = _sum(torch.where(y > 0, pos, neg), counted) / pixel_count
        dice[n] = torch.where(valid[n], 1 - numerator / denominator, 0)
    return focal, dice


def reference_backward(
    grad_focal: Tensor,
    grad_dice: Tensor,
    mask_logits: Tensor,
    pixels: Tensor,
    valid: Tensor,
    alpha: float,
    gamma: float,
    ignore_void: bool,
) -> Tensor:
    """Gradient of `mask_logits` [N, T, h, w] from the gradients of focal and dice [N, T]."""
    grad = torch.empty_like(mask_logits, memory_format=torch.contiguous_format)
    for n, row in enumerate(mask_logits):
        image = pixels[n % len(pixels)]
        x, y, counted, pixel_count = _full_size(row, image, valid[n], ignore_void)
        numerator, denominator = _dice_parts(torch.sigmoid(x), y, counted)
        pos, neg, slope = focal_derivatives(x, alpha, gamma)
        of_focal = (grad_focal[n] / pixel_count)[:, None, None]
        of_dice = (grad_dice[n] / denominator**2)[:, None, None]
        overlap = numerator[:, None, None] - 2 * y * denominator[:, None, None]
        full = of_focal * torch.where(y > 0, pos, neg) + of_dice * overlap * slope
        grad[n] = upsample_adjoint(torch.where(counted, full, 0), (row.shape[1], row.shape[2]))
    return grad


def _fake(mask_logits: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(mask_logits.dtype, torch.float32)
    shape = mask_logits.shape[:2]
    return mask_logits.new_empty(shape, dtype=dtype), mask_logits.new_empty(shape, dtype=dtype)


def _fake_backward(_: Tensor, __: Tensor, mask_logits: Tensor, *___: object) -> Tensor:
    return torch.empty_like(mask_logits, memory_format=torch.contiguous_format)


_INPUTS = (
    "Tensor mask_logits, Tensor pixels, Tensor valid,"
    " float alpha, float gamma, bool ignore_void, str backend"
)
_forward = register(
    "mask_loss",
    f"({_INPUTS}) -> (Tensor, Tensor)",
    fake=_fake,
    backends={"reference": reference},
)
_backward = register(
    "mask_loss_backward",
    f"(Tensor grad_focal, Tensor grad_dice, {_INPUTS}) -> Tensor",
    fake=_fake_backward,
    backends={"reference": reference_backward},
)


class _MaskLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mask_logits: Tensor,
        pixels: Tensor,
        valid: Tensor,
        alpha: float,
        gamma: float,
        ignore_void: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mask_logits, pixels, valid)
        ctx.options = (alpha, gamma, ignore_void, backend)
        focal, dice = _forward(mask_logits, pixels, valid, *ctx.options)
        return focal, dice

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_focal: Tensor, grad_dice: Tensor) -> tuple[Tensor | None, ...]:
        grad = _backward(grad_focal, grad_dice, *ctx.saved_tensors, *ctx.options)
        return grad, None, None, None, None, None, None


def mask_loss(
    mask_logits: Tensor,
    targets: Targets,
    *,
    alpha: float = 0.25,
    gamma: float = 2,
    ignore_void: bool = False,
    valid: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of each matched mask against its target, at the targets' size.

    mask_logits  [N, T, h, w]  N = L*B with image n % B; row t is the query matched with target t.
                 float32, float16, bfloat16 (float64: reference). Differentiable.
    targets      Targets of B images, T rows
    valid        [N, T] bool: False where a target has no query (T > Q)
    returns      focal [N, T], dice [N, T], float32 (float64 for float64)

    Padding rows and rows that are not valid give 0 and no gradient, also when their logits are NaN.
    Raises TypeError or ValueError naming the argument that is off.
    """
    sizes = checks.Sizes()
    checks.tensor("mask_logits", mask_logits, "N T h w", sizes)
    checks.rows_of_targets("mask_logits", targets, sizes, mask_logits)
    checks.at_least("alpha", alpha, 0)
    checks.at_least("gamma", gamma, 0)
    rows = targets.is_target.repeat(sizes["N"] // max(len(targets.labels), 1), 1)  # [N, T]
    if valid is not None:
        checks.tensor("valid", valid, "N T", sizes, dtypes=(torch.bool,))
        checks.same_device("valid", valid, mask_logits)
        rows = rows & valid
    chosen = resolve("mask_loss", backend, mask_logits.device.type, mask_logits.dtype)
    focal, dice = _MaskLoss.apply(
        mask_logits, targets.pixels, rows, float(alpha), float(gamma), ignore_void, chosen
    )
    return focal, dice
