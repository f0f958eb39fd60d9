"""mask_logits, mask_probs and their gradients in Triton: three products by two kernels.

    x[b, q, p]             = sum_c mask_queries[b, q, c] pixel_features[b, c, p]           product
    grad_features[b, c, p] = sum_q mask_queries[b, q, c] grad[b, q, p]                     product
    grad_queries[b, q, c]  = sum_p grad[b, q, p] pixel_features[b, c, p]    product_over_pixels

For mask_probs the first is followed by a sigmoid; backward computes it again and multiplies grad by
its slope s (1 - s) before the other two. p runs over the P = h * w cells of the grid, whose rows
must follow one another in memory: a view with gaps between rows is copied first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskformer_fast.kernels.launch import aligned, configuration, launch
from maskformer_fast.kernels.logistic import sigmoid

PRECISION = {torch.float32: "ieee"}  # of products; half inputs have one way
FEW_ROWS = 64
CELLS_OF_SPLIT = 2048  # fixed: the parts that cells are added in depend on the shape alone


@triton.jit(do_not_specialize=["rows"])
def product(
    left,  # [B, M, K]
    right,  # [B, K, P]
    grad,  # [B, M, P], read where EPILOGUE is "slope"
    result,  # [B, M, P] contiguous
    rows,
    inner,
    cells,
    left_b,
    left_m,
    left_k,
    right_b,
    right_k,
    right_p,
    grad_b,
    grad_m,
    grad_p,
    EPILOGUE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """left [M, K] x right [K, P] of each image: one program = BLOCK_M x BLOCK_P of one image.

    grid     (cdiv(M, BLOCK_M) * cdiv(P, BLOCK_P), B), row blocks of the same cells side by side
    reads    left once per block of cells (small, stays in L2), right once from memory and from L2
             by the other row blocks
    writes   result once
    epilogue "none"; "sigmoid"; "slope": times grad * s (1 - s)
    numerics sums in float32; IEEE products for float32
    edges    m >= M, p >= P, k >= K masked; offsets int64; any strides
    """
    row_blocks = tl.cdiv(rows, BLOCK_M)
    b = tl.program_id(1).to(tl.int64)
    m = (tl.program_id(0) % row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    p = (tl.program_id(0) // row_blocks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)[None]
    k = tl.arange(0, BLOCK_K).to(tl.int64)
    lefts = left + b * left_b + m * left_m
    rights = right + b * right_b + p * right_p
    sums = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
    for start in range(0, inner, BLOCK_K):
        at = start + k
        at_m, at_p = at[None], at[:, None]
        x = tl.load(lefts + at_m * left_k, (m < rows) & (at_m < inner), 0.0)
        y = tl.load(rights + at_p * right_k, (p < cells) & (at_p < inner), 0.0)
        sums = tl.dot(x, y, sums, input_precision=PRECISION)
    inside = (m < rows) & (p < cells)
    if EPILOGUE == "sigmoid":
        sums = sigmoid(sums)
    if EPILOGUE == "slope":
        s = sigmoid(sums)
        grads = tl.load(grad + b * grad_b + m * grad_m + p * grad_p, inside, 0.0)
        sums = grads.to(tl.float32) * (s * (1.0 - s))
    results = result + (b * rows + m) * cells + p
    tl.store(results, sums.to(result.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["images", "rows"])
def product_over_pixels(
    left,  # [B, M, P]
    right,  # [B, N, P]
    partial,  # [splits, B, M, N] contiguous float32
    images,
    rows,
    columns,
    cells,
    cells_of_split,
    left_b,
    left_m,
    left_p,
    right_b,
    right_n,
    right_p,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """left [M, P] x right^T [P, N] of each image: one program = BLOCK_M x BLOCK_N of one split.

    grid     (cdiv(M, BLOCK_M) * cdiv(N, BLOCK_N) * splits, B), blocks of one split side by side
    reads    left and right once from memory, and from L2 by the other blocks of the split
    writes   partial once; the splits are then added in order: no atomics, the same bits every run
    numerics sums in float32; IEEE products for float32
    edges    m >= M, n >= N, p >= P masked; offsets int64; any strides
    """
    row_blocks, column_blocks = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    block = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    m = (block % row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    n = block // row_blocks % column_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    n = n.to(tl.int64)[None]
    split = (block // (row_blocks * column_blocks)).to(tl.int64)
    lefts = left + b * left_b + m * left_m
    rights = right + b * right_b + n * right_n
    first = split * cells_of_split
    last = tl.minimum(first + cells_of_split, cells)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, last, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        at_m, at_n = p[None], p[:, None]
        x = tl.load(lefts + at_m * left_p, (m < rows) & (at_m < last), 0.0)
        y = tl.load(rights + at_n * right_p, (n < columns) & (at_n < last), 0.0)
        sums = tl.dot(x, y, sums, input_precision=PRECISION)
    results = partial + ((split * images + b) * rows + m) * columns + n
    tl.store(results, sums, (m < rows) & (n < columns))


def forward(mask_queries: Tensor, pixel_features: Tensor, with_sigmoid: bool) -> Tensor:
    """The op mask_logits: [B, Q, C] x [B, C, h, w] -> [B, Q, h, w]."""
    b, q, _ = mask_queries.shape
    result = mask_queries.new_empty(b, q, *pixel_features.shape[2:])
    _multiply(mask_queries, pixel_features, result, "sigmoid" if with_sigmoid else "none")
    return result


def backward(
    grad: Tensor, mask_queries: Tensor, pixel_features: Tensor, with_sigmoid: bool
) -> tuple[Tensor, Tensor]:
    """The op mask_logits_backward: gradients of both inputs from that of the result.

    With the sigmoid, grad * s (1 - s) is held once, [B, Q, h, w] in the dtype of the inputs.
    """
    if with_sigmoid:
        slopes = torch.empty_like(grad, memory_format=torch.contiguous_format)
        _multiply(mask_queries, pixel_features, slopes, "slope", grad)
        grad = slopes
    grad_features = torch.empty_like(pixel_features, memory_format=torch.contiguous_format)
    _multiply(mask_queries.mT, grad, grad_features, "none")
    return _multiply_over_pixels(grad, pixel_features), grad_features


def _multiply(
    left: Tensor, right: Tensor, result: Tensor, epilogue: str, grad: Tensor | None = None
) -> None:
    """Fill result [B, M, h, w] from left [B, M, K] and right [B, K, h, w]."""
    b, rows, inner = left.shape
    right = right.flatten(2)
    cells = right.shape[2]
    grad = right if grad is None else grad.flatten(2)
    size_class = _size_class(rows, left, right, grad, cells)
    config = configuration("mask_logits.product", size_class, left.device)
    blocks = triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(cells, config["BLOCK_P"])
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
        cells,
        *left.stride(),
        *right.stride(),
        *grad.stride(),
        EPILOGUE=epilogue,
        PRECISION=PRECISION.get(left.dtype),
    )


def _multiply_over_pixels(left: Tensor, right: Tensor) -> Tensor:
    """left [B, M, h, w], right [B, N, h, w] -> [B, M, N]."""
    left, right = left.flatten(2), right.flatten(2)
    (b, rows, cells), columns = left.shape, right.shape[1]
    size_class = _size_class(rows, left, right, cells, columns)
    config = configuration("mask_logits.product_over_pixels", size_class, left.device)
    splits = triton.cdiv(cells, CELLS_OF_SPLIT)
    blocks = triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(columns, config["BLOCK_N"])
    partial = torch.empty(splits, b, rows, columns, dtype=torch.float32, device=left.device)
    launch(
        product_over_pixels,
        (blocks * splits, b),
        config,
        left,
        right,
        partial,
        b,
        rows,
        columns,
        cells,
        CELLS_OF_SPLIT,
        *left.stride(),
        *right.stride(),
        PRECISION=PRECISION.get(left.dtype),
    )
    return partial.sum(0).to(left.dtype)


def _size_class(rows: int, left: Tensor, *others: Tensor | int) -> str:
    if left.dtype == torch.float32:
        return "float32"
    if not aligned(left, *others):
        return "half_unaligned"
    return "half" if rows > FEW_ROWS else "half_few_rows"
