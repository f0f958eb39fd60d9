"""mask_logits, mask_probs: queries . features, MaskFormer's last dense product.

    logits[b, q, y, x] = sum_c mask_queries[b, q, c] * pixel_features[b, c, y, x]
    probs = sigmoid(logits)

(Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation", 2021.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskformer_fast.ops import checks
from maskformer_fast.ops.precision import ieee_float32
from maskformer_fast.ops.registry import compiled_module, register, resolve


def reference(mask_queries: Tensor, pixel_features: Tensor, sigmoid: bool) -> Tensor:
    """[B, Q, C] x [B, C, h, w] -> [B, Q, h, w], summed in float32 (float64 stays float64)."""
    compute = torch.promote_types(mask_queries.dtype, torch.float32)
    with ieee_float32(mask_queries.device):
        logits = torch.einsum(
            "bqc,bchw->bqhw", mask_queries.to(compute), pixel_features.to(compute)
        )
    result = logits.sigmoid() if sigmoid else logits
    return result.to(mask_queries.dtype).contiguous()


def reference_backward(
    grad: Tensor, mask_queries: Tensor, pixel_features: Tensor, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of both inputs; with `sigmoid`, through p (1 - p), p computed again."""
    compute = torch.promote_types(mask_queries.dtype, torch.float32)
    queries, features, grad = (t.to(compute) for t in (mask_queries, pixel_features, grad))
    with ieee_float32(mask_queries.device):
        if sigmoid:
            probs = torch.einsum("bqc,bchw->bqhw", queries, features).sigmoid()
            grad = grad * probs * (1 - probs)
        grad_queries = torch.einsum("bqhw,bchw->bqc", grad, features)
        grad_features = torch.einsum("bqhw,bqc->bchw", grad, queries)
    dtype = mask_queries.dtype
    return grad_queries.to(dtype).contiguous(), grad_features.to(dtype).contiguous()


def compiled(mask_queries: Tensor, pixel_features: Tensor, sigmoid: bool) -> Tensor:
    """As `reference`: torch's product, then the sigmoid in place: csrc/cpu/mask_logits.cpp."""
    queries, features = mask_queries.float(), pixel_features.flatten(2).float()
    with ieee_float32(queries.device):
        result = queries @ features  # [B, Q, h * w]
    if sigmoid:
        compiled_module().sigmoid_in_place(
            x=result.data_ptr(), count=result.numel(), threads=torch.get_num_threads()
        )
    return result.unflatten(2, pixel_features.shape[2:]).to(mask_queries.dtype).contiguous()


def compiled_backward(
    grad: Tensor, mask_queries: Tensor, pixel_features: Tensor, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    """As `reference_backward`; p (1 - p) of the logits in place in C++."""
    queries, features = mask_queries.float(), pixel_features.flatten(2).float()
    slopes = grad.flatten(2).float()  # [B, Q, h * w]
    with ieee_float32(queries.device):
        if sigmoid:
            logits, slopes = queries @ features, slopes.contiguous()
            compiled_module().sigmoid_backward_in_place(
                x=logits.data_ptr(),
                grad=slopes.data_ptr(),
                count=logits.numel(),
                threads=torch.get_num_threads(),
            )
            slopes = logits
        grad_queries, grad_features = slopes @ features.mT, queries.mT @ slopes
    dtype = mask_queries.dtype
    grad_features = grad_features.unflatten(2, pixel_features.shape[2:])
    return grad_queries.to(dtype).contiguous(), grad_features.to(dtype).contiguous()


def _fake(mask_queries: Tensor, pixel_features: Tensor, sigmoid: bool) -> Tensor:
    b, q, _ = mask_queries.shape
    return mask_queries.new_empty(b, q, *pixel_features.shape[2:])


def _fake_backward(
    grad: Tensor, mask_queries: Tensor, pixel_features: Tensor, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    return mask_queries.new_empty(mask_queries.shape), pixel_features.new_empty(
        pixel_features.shape
    )


_forward = register(
    "mask_logits",
    "(Tensor mask_queries, Tensor pixel_features, bool sigmoid, str backend) -> Tensor",
    fake=_fake,
    backends={"reference": reference, "cpu": compiled},
)
_backward = register(
    "mask_logits_backward",
    "(Tensor grad, Tensor mask_queries, Tensor pixel_features, bool sigmoid, str backend)"
    " -> (Tensor, Tensor)",
    fake=_fake_backward,
    backends={"reference": reference_backward, "cpu": compiled_backward},
)


class _MaskLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mask_queries: Tensor, pixel_features: Tensor, sigmoid: bool, backend: str
    ) -> Tensor:
        ctx.save_for_backward(mask_queries, pixel_features)
        ctx.sigmoid, ctx.backend = sigmoid, backend
        return _forward(mask_queries, pixel_features, sigmoid, backend)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(grad, *ctx.saved_tensors, ctx.sigmoid, ctx.backend), None, None


def mask_logits(mask_queries: Tensor, pixel_features: Tensor, *, backend: str = "auto") -> Tensor:
    """Mask logits: the dot product of every mask query with every pixel's feature.

    mask_queries    [B, Q, C]     float32, float16, bfloat16 (float64: reference), Q >= 1
    pixel_features  [B, C, h, w]  same dtype and device
    returns         [B, Q, h, w]  same dtype; sums in float32. Differentiable in both inputs.

    Raises TypeError or ValueError naming the argument that is off.
    """
    return _dispatch(mask_queries, pixel_features, False, backend)


def mask_probs(mask_queries: Tensor, pixel_features: Tensor, *, backend: str = "auto") -> Tensor:
    """Mask probabilities, sigmoid(mask_logits(...)), in one pass; shapes as `mask_logits`."""
    return _dispatch(mask_queries, pixel_features, True, backend)


def _dispatch(mask_queries: Tensor, pixel_features: Tensor, sigmoid: bool, backend: str) -> Tensor:
    sizes = checks.Sizes()
    checks.tensor("mask_queries", mask_queries, "B Q C", sizes)
    checks.tensor("pixel_features", pixel_features, "B C h w", sizes, like=mask_queries)
    checks.queries("mask_queries", sizes)
    chosen = resolve("mask_logits", backend, mask_queries.device.type, mask_queries.dtype)
    return _MaskLogits.apply(mask_queries, pixel_features, sigmoid, chosen)
