"""mask_loss: focal and dice loss of matched masks at full size, without full-size tensors.

    x     mask_logits upsampled to H x W (bilinear, align_corners=False)
    y     target at full size, P = H W pixels
    focal ( sum_p y pos + (1 - y) neg ) / P                       pos, neg: see focal.py
    dice  1 - N / D,  N = 2 sum_p y s + 1,  D = sum_p s + sum_p y + 1

With `ignore_void`, void pixels leave every sum and P (no pixel left gives 0 for focal). Both losses
of a mask have a slope at every cell of its grid, which the forward pass finds on its way:

    d focal / dx = ( y pos' + (1 - y) neg' ) / P
    d dice  / dx = (N - 2 y D) / D^2 s (1 - s)

and the adjoint of the upsampling. The backward pass is their weighted sum. The reference keeps the
full-size masks of one layer of one image at a time.
(Lin et al., "Focal Loss", 2017; Milletari et al., "V-Net", 2016, for dice.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskformer_fast.ops import checks
from maskformer_fast.ops.floats import address, float_type
from maskformer_fast.ops.focal import focal_derivatives, focal_terms
from maskformer_fast.ops.registry import compiled_module, register, resolve, triton_backend
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
    with_slopes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """[N, T, h, w], pixels of B images, valid [N, T] -> focal, dice [N, T], and the slopes of both.

    slopes  [2, N, T, h, w], d focal / d mask_logits and d dice / d mask_logits; [2, 0] if not
            wanted. All are float32 or float64.
    """
    focal, dice, slopes = _fake(mask_logits, pixels, valid, alpha, gamma, ignore_void, with_slopes)
    for n, row in enumerate(mask_logits):
        image = pixels[n % len(pixels)]
        x, y, counted, pixel_count = _full_size(row, image, valid[n], ignore_void)
        pos, neg, s = focal_terms(x, alpha, gamma)
        numerator, denominator = _dice_parts(s, y, counted)
        focal[n] = _sum(torch.where(y > 0, pos, neg), counted) / pixel_count
        dice[n] = torch.where(valid[n], 1 - numerator / denominator, 0)
        if with_slopes:
            pos, neg, slope = focal_derivatives(x, alpha, gamma)
            n_, d_ = numerator[:, None, None], denominator[:, None, None]
            of_focal = torch.where(y > 0, pos, neg) / pixel_count
            of_dice = (n_ - 2 * y * d_) / d_**2 * slope
            full = torch.where(counted, torch.stack([of_focal, of_dice]), 0)
            slopes[:, n] = upsample_adjoint(full, (row.shape[1], row.shape[2]))
    return focal, dice, slopes


def reference_backward(
    grad_focal: Tensor, grad_dice: Tensor, slopes: Tensor, dtype: torch.dtype
) -> Tensor:
    """Gradients of the losses [N, T], slopes [2, N, T, h, w] -> that of mask_logits, in `dtype`."""
    of_focal, of_dice = (grad[..., None, None] for grad in (grad_focal, grad_dice))
    return (of_focal * slopes[0]).addcmul_(of_dice, slopes[1]).to(dtype)


def compiled(
    mask_logits: Tensor,
    pixels: Tensor,
    valid: Tensor,
    alpha: float,
    gamma: float,
    ignore_void: bool,
    with_slopes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference`, in C++: csrc/cpu/mask_loss.cpp, threads over the targets of all images."""
    mask_logits, pixels, valid = (t.contiguous() for t in (mask_logits, pixels, valid))
    focal, dice, slopes = outputs = _fake(
        mask_logits, pixels, valid, alpha, gamma, ignore_void, with_slopes
    )
    overlapping = pixels.dtype == torch.bool
    occupied = pixels.any(1) if overlapping and ignore_void else None
    n, t, h, w = mask_logits.shape
    images = len(pixels)
    if focal.numel() == 0:
        return outputs
    compiled_module().mask_loss(
        logits=mask_logits.data_ptr(),
        type=float_type(mask_logits),
        pixels=pixels.data_ptr(),
        overlapping=overlapping,
        occupied=address(occupied),
        valid=valid.data_ptr(),
        focal=focal.data_ptr(),
        dice=dice.data_ptr(),
        slopes=address(slopes if with_slopes else None),
        sizes=(n // images, images, t, h, w, *pixels.shape[-2:]),
        alpha=alpha,
        gamma=gamma,
        ignore_void=ignore_void,
        threads=torch.get_num_threads(),
    )
    return outputs


def _fake(
    mask_logits: Tensor,
    _pixels: Tensor,
    _valid: Tensor,
    _alpha: float,
    _gamma: float,
    _ignore_void: bool,
    with_slopes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(mask_logits.dtype, torch.float32)
    shape = mask_logits.shape[:2]
    slopes = (2, *mask_logits.shape) if with_slopes else (2, 0)
    focal, dice, slopes_ = (mask_logits.new_empty(s, dtype=dtype) for s in (shape, shape, slopes))
    return focal, dice, slopes_


def _fake_backward(
    _grad_focal: Tensor, _grad_dice: Tensor, slopes: Tensor, dtype: torch.dtype
) -> Tensor:
    return slopes.new_empty(slopes.shape[1:], dtype=dtype)


_forward = register(
    "mask_loss",
    "(Tensor mask_logits, Tensor pixels, Tensor valid, float alpha, float gamma,"
    " bool ignore_void, bool with_slopes, str backend) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    backends={
        "reference": reference,
        "cpu": compiled,
        "triton": triton_backend("mask_loss", "forward"),
    },
)
_backward = register(
    "mask_loss_backward",
    "(Tensor grad_focal, Tensor grad_dice, Tensor slopes, ScalarType dtype, str backend) -> Tensor",
    fake=_fake_backward,
    backends={
        "reference": reference_backward,
        "cpu": reference_backward,
        "triton": triton_backend("mask_loss", "backward"),
    },
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
        with_slopes: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        focal, dice, slopes = _forward(
            mask_logits, pixels, valid, alpha, gamma, ignore_void, with_slopes, backend
        )
        ctx.save_for_backward(slopes)
        ctx.dtype, ctx.backend = mask_logits.dtype, backend
        return focal, dice

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_focal: Tensor, grad_dice: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        grad = _backward(grad_focal, grad_dice, slopes, ctx.dtype, ctx.backend)
        return grad, None, None, None, None, None, None, None


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
    with_slopes = torch.is_grad_enabled() and mask_logits.requires_grad
    options = (float(alpha), float(gamma), ignore_void, with_slopes, chosen)
    focal, dice = _MaskLoss.apply(mask_logits, targets.pixels, rows, *options)
    return focal, dice
