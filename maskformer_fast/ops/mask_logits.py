"""mask_logits, mask_probs: queries . features, MaskFormer's last dense product.

    logits[b, q, y, x] = sum_c mask_queries[b, q, c] * pixel_features[b, c, y, x]
    probs = sigmoid(logits)

(Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation", 2021.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskformer_fast.ops import checks
from maskformer_fast.ops.precision import ieee_float32
from maskformer_fast.ops.registry import compiled_module, register, resolve, triton_backend

TILE_CELLS = 2048  # of the mask grid: what of half inputs is held as float32 at a time


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
    """As `reference`, tile by tile: torch's product, then the sigmoid in place, in C++
    (csrc/cpu/mask_logits.cpp). A float32 image is one tile, its product in the result's memory.
    """
    result = _fake(mask_queries, pixel_features, sigmoid)
    for image in zip(mask_queries, pixel_features, result, strict=True):
        compiled_image(*image, sigmoid)
    return result


def compiled_image(queries: Tensor, features: Tensor, into: Tensor, sigmoid: bool) -> None:
    """One image's [Q, C] x [C, h, w], written to contiguous memory [Q, h, w] of the same dtype."""
    queries = queries.float()
    for rows in _tiles(features):
        logits = _multiply(queries, _cells(features[:, rows]), into[:, rows])
        if sigmoid:
            compiled_module().sigmoid_in_place(
                x=logits.data_ptr(), count=logits.numel(), threads=torch.get_num_threads()
            )
        _store(logits, into[:, rows])


def compiled_backward(
    grad: Tensor, mask_queries: Tensor, pixel_features: Tensor, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    """As `reference_backward`, by the same tiles; p (1 - p) of the logits in place in C++."""
    grad_queries, grad_features = _fake_backward(grad, mask_queries, pixel_features, sigmoid)
    memory = torch.empty(0)  # of a tile's logits, for all tiles: an allocator may not reuse its own
    for image, queries in enumerate(mask_queries.float()):
        total = torch.zeros_like(queries)
        for rows in _tiles(pixel_features[image]):
            features = _cells(pixel_features[image, :, rows])  # [C, cells]
            slopes = _cells(grad[image, :, rows])  # [Q, cells]
            into = grad_features[image, :, rows]
            with ieee_float32(queries.device):
                if sigmoid:
                    logits = torch.mm(queries, features, out=memory.resize_(slopes.shape))
                    slopes = _times_slope_of_sigmoid(slopes.contiguous(), logits)
                total.addmm_(slopes, features.mT)
            _store(_multiply(queries.mT, slopes, into), into)
        grad_queries[image] = total
    return grad_queries, grad_features


def _tiles(features: Tensor) -> Iterator[slice]:
    """Rows of the grid [C, h, w]: all of them in float32, else about TILE_CELLS cells."""
    height, width = features.shape[1:]
    step = height if features.dtype == torch.float32 else TILE_CELLS // max(width, 1)
    step = max(step, 1)
    return (slice(start, min(start + step, height)) for start in range(0, height, step))


def _cells(rows: Tensor) -> Tensor:
    """[N, rows, w] -> float32 [N, rows * w]."""
    return rows.float().flatten(1)


def _multiply(left: Tensor, right: Tensor, into: Tensor) -> Tensor:
    """left @ right [N, rows * w] in float32; in the memory of `into` [N, rows, w] if that is so."""
    with ieee_float32(left.device):
        if into.dtype == torch.float32:
            return torch.mm(left, right, out=into.flatten(1))
        return left @ right


def _store(product: Tensor, into: Tensor) -> None:
    """The rest of `_multiply`, once the product is final."""
    if into.dtype != torch.float32:
        into.copy_(product.view(into.shape))


def _times_slope_of_sigmoid(grad: Tensor, logits: Tensor) -> Tensor:
    """grad * p (1 - p), in the memory of `logits`; both float32 and contiguous."""
    compiled_module().sigmoid_backward_in_place(
        x=logits.data_ptr(),
        grad=grad.data_ptr(),
        count=logits.numel(),
        threads=torch.get_num_threads(),
    )
    return logits


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
    backends={
        "reference": reference,
        "cpu": compiled,
        "triton": triton_backend("mask_logits", "forward"),
    },
)
_backward = register(
    "mask_logits_backward",
    "(Tensor grad, Tensor mask_queries, Tensor pixel_features, bool sigmoid, str backend)"
    " -> (Tensor, Tensor)",
    fake=_fake_backward,
    backends={
        "reference": reference_backward,
        "cpu": compiled_backward,
        "triton": triton_backend("mask_logits", "backward"),
    },
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
