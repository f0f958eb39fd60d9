"""mask_logits, mask_probs and their gradients in Triton: three products of two kernels.

    x[b, q, p]            =  sum_c mask_queries[b, q, c] pixel_features[b, c, p]        product
    grad_features[b, c, p] = sum_q mask_queries[b, q, c] grad[b, q, p]                  product
    grad_queries[b, q, c]  = sum_p grad[b, q, p] pixel_features[b, c, p]        product_over_pixels

For mask_probs the first is followed by a sigmoid; backward computes it again and multiplies grad by
its slope s (1 - s) before the other two. p runs over the h * w cells of the grid.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskformer_fast.kernels.launch import configuration, launch
from maskformer_fast.kernels.logistic import sigmoid

PRECISION = {torch.float32: "ieee"}  # of products; half inputs have one way


@triton.jit
def cell_offsets(cells, width, stride_y, stride_x, FLAT: tl.constexpr):
    """Offsets of grid cells; FLAT: rows follow one another, stride_y = width * stride_x."""
    cells = cells.to(tl.int64)
    if FLAT:
        return cells * stride_x
    return (cells // width) * stride_y + (cells % width) * stride_x


@triton.jit
def product(
    left,  # [B, M, K]
    right,  # [B, K, h, w]
    grad,  # [B, M, h, w], read where EPILOGUE is "slope"
    result,  # [B, M, h, w] contiguous
    rows,
    inner,
    cells,
    width,
    left_b,
    left_m,
    left_k,
    right_b,
    right_k,
    right_y,
    right_x,
    grad_b,
    grad_m,
    grad_y,
    grad_x,
    FLAT: tl.constexpr,
    GRAD_FLAT: tl.constexpr,
    EPILOGUE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """left [M, K] x right [K, P] of each image: one program = BLOCK_M x BLOCK_P of one image.

    grid     (cdiv(M, BLOCK_M) * cdiv(P, BLOCK_P), B), row blocks of the same cells side by side
    reads    left once per block of cells (small, stays in L2), right once per row block, from L2
             for all but the first
    writes   result once
    epilogue "none"; "sigmoid"; "slope": times grad * s (1 - s)
    numerics sums in float32; IEEE products for float32
    edges    m >= M, p >= P, k >= K masked; offsets int64; any strides
    """
    row_blocks = tl.cdiv(rows, BLOCK_M)
    m = tl.program_id(0) % row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    p = tl.program_id(0) // row_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    b = tl.program_id(1).to(tl.int64)
    k = tl.arange(0, BLOCK_K).to(tl.int64)
    m_in, p_in = (m < rows)[:, None], (p < cells)[None]
    m = m.to(tl.int64)
    lefts = left + b * left_b + m[:, None] * left_m
    rights = right + b * right_b + cell_offsets(p, width, right_y, right_x, FLAT)[None]
    sums = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
    for start in range(0, inner, BLOCK_K):
        at = start + k
        x = tl.load(lefts + at[None] * left_k, m_in & (at < inner)[None], 0.0)
        y = tl.load(rights + at[:, None] * right_k, p_in & (at < inner)[:, None], 0.0)
        sums = tl.dot(x, y, sums, input_precision=PRECISION)
    if EPILOGUE == "sigmoid":
        sums = sigmoid(sums)
    if EPILOGUE == "slope":
        s = sigmoid(sums)
        grads = grad + b * grad_b + m[:, None] * grad_m
        grads += cell_offsets(p, width, grad_y, grad_x, GRAD_FLAT)[None]
        sums = tl.load(grads, m_in & p_in, 0.0).to(tl.float32) * (s * (1.0 - s))
    results = result + (b * rows + m[:, None]) * cells + p[None]
    tl.store(results, sums.to(result.dtype.element_ty), m_in & p_in)


def forward(mask_queries: Tensor, pixel_features: Tensor, apply_sigmoid: bool) -> Tensor:
    """[B, Q, C] x [B, C, h, w] -> [B, Q, h, w]: the op mask_logits."""
    b, q, _ = mask_queries.shape
    result = mask_queries.new_empty(b, q, *pixel_features.shape[2:])
    _product(mask_queries, pixel_features, result, "sigmoid" if apply_sigmoid else "none")
    return result


def _product(
    left: Tensor, right: Tensor, result: Tensor, epilogue: str, grad: Tensor | None = None
) -> None:
    b, rows, inner = left.shape
    height, width = right.shape[2:]
    size_class = "float32" if left.dtype == torch.float32 else "half"
    config = configuration("mask_logits.product", size_class, left.device)
    blocks = triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(height * width, config["BLOCK_P"])
    grad = right if grad is None else grad
    launch(
        product,
        (blocks, b),
        config,
        left,
        right,
        grad,
        result,
        rows,
        inner,
        height * width,
        width,
        *left.stride(),
        *right.stride(),
        *grad.stride(),
        FLAT=_flat(right),
        GRAD_FLAT=_flat(grad),
        EPILOGUE=epilogue,
        PRECISION=PRECISION.get(left.dtype),
    )


def _flat(x: Tensor) -> bool:
    """Whether the cells of x [..., h, w] are evenly spaced."""
    return x.stride(-2) == x.shape[-1] * x.stride(-1)
