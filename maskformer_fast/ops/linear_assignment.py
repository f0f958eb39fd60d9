"""linear_assignment: one-to-one matching of targets and queries with the least total cost."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from maskformer_fast.ops import checks
from maskformer_fast.ops.cuda_launch import Kernels, cuda_backends
from maskformer_fast.ops.registry import compiled_module, register, resolve

UNMATCHED = -1
OPTIMAL, REPLACED, LIMIT_REACHED = 0, 1, 2  # values of Assignment.status
RELATIVE_GAP = 1e-9  # of max(1, sum |c| of the matching): what still counts as optimal
HUGE, SHRINK = 2.0**900, 2.0**-200  # sums of entries beyond HUGE could overflow: they are scaled


class Assignment(NamedTuple):
    """Result of `linear_assignment`.

    query_of_target  [..., T] int64   the target's query; -1 for padding, or T > Q and left over
    gap              [...] float64    primal minus dual value: the total is within it of the optimum
    status           [...] int8       0 optimal, 1 non-finite entries were replaced, 2 the work
                                      limit was reached and `gap` says by how much it may be off
    """

    query_of_target: Tensor
    gap: Tensor
    status: Tensor


def replace_non_finite(cost: np.ndarray) -> tuple[np.ndarray, bool]:
    """The float64 matrix with BIG for each NaN or infinity, and whether there was any.

    BIG = max + T (max - min) + max(1, max - min) over the finite entries, 1 without any: one more
    of them always costs more than any choice of the finite ones can save.
    """
    finite = np.isfinite(cost)
    if finite.all():
        return cost, False
    if not finite.any():
        return np.ones_like(cost), True
    most, spread = cost[finite].max(), np.ptp(cost[finite])
    return np.where(finite, cost, most + len(cost) * spread + max(1.0, spread)), True


def duality_gap(cost: np.ndarray, column_of: np.ndarray) -> float:
    """Primal minus dual value of a matching of all rows of `cost` [m, n], m <= n.

    For any v <= 0 and u_i = min_j (c_ij - v_j), sum u + sum v bounds the optimum from below. With
    m(i) the column of row i, v_j = min(0, min_i (c_ij - c_im(i) + v_m(i))) proves that a matching
    is optimal; Bellman-Ford finds it from v = 0.
    """
    rows = np.arange(len(cost))
    prices = np.zeros(cost.shape[1])
    moved = cost - cost[rows, column_of][:, None]  # what row i pays more in column j
    for _ in range(len(cost)):
        lower = np.minimum(prices, (moved + prices[column_of][:, None]).min(axis=0))
        if np.array_equal(lower, prices):
            break
        prices = lower
    bound = (cost - prices).min(axis=1).sum() + prices.sum()
    return max(0.0, float(cost[rows, column_of].sum() - bound))  # below 0 by rounding only


def solve(cost: np.ndarray) -> tuple[np.ndarray, float, int]:
    """One problem [T, Q] by SciPy: the query of each target, the gap and the status."""
    targets, queries = cost.shape
    query_of_target = np.full(targets, UNMATCHED)
    largest = np.abs(cost, where=np.isfinite(cost), out=np.zeros_like(cost)).max(initial=0.0)
    scale = SHRINK if largest > HUGE else 1.0
    matrix, replaced = replace_non_finite(cost * scale)
    rows, columns = linear_sum_assignment(matrix)
    query_of_target[rows] = columns
    if len(rows) == 0:
        return query_of_target, 0.0, OPTIMAL
    if targets <= queries:
        gap = duality_gap(matrix, columns)
    else:
        order = np.argsort(columns)
        gap = duality_gap(matrix.T, rows[order])
    optimal = gap <= RELATIVE_GAP * max(scale, np.abs(matrix[rows, columns]).sum())
    status = (REPLACED if replaced else OPTIMAL) if optimal else LIMIT_REACHED
    return query_of_target, gap / scale, status


def reference(cost: Tensor, num_targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """[N, T, Q] and [N] -> query_of_target [N, T], gap [N], status [N], problem by problem."""
    matrices = cost.detach().to("cpu", torch.float64).numpy()
    query_of_target = np.full(matrices.shape[:2], UNMATCHED, dtype=np.int64)
    gap = np.zeros(len(matrices))
    status = np.zeros(len(matrices), dtype=np.int8)
    targets = cost.shape[1]
    counts = [targets] * len(matrices) if num_targets is None else num_targets.tolist()
    for n, rows in enumerate(counts):
        query_of_target[n, :rows], gap[n], status[n] = solve(matrices[n, :rows])
    results = (query_of_target, gap, status)
    query_of_target_, gap_, status_ = (torch.from_numpy(r).to(cost.device) for r in results)
    return query_of_target_, gap_, status_


def _fake(cost: Tensor, num_targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    n, t, _ = cost.shape
    return (
        cost.new_empty(n, t, dtype=torch.int64),
        cost.new_empty(n, dtype=torch.float64),
        cost.new_empty(n, dtype=torch.int8),
    )


def compiled(cost: Tensor, num_targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference`, in C++: csrc/cpu/linear_assignment.cpp, threads over problems."""
    float64 = cost.dtype == torch.float64
    cost = (cost if float64 else cost.float()).contiguous()
    n, t, q = cost.shape
    counts = None if num_targets is None else num_targets.contiguous()
    query_of_target = torch.empty(n, t, dtype=torch.int64)
    gap = torch.empty(n, dtype=torch.float64)
    status = torch.empty(n, dtype=torch.int8)
    compiled_module().linear_assignment(
        cost.data_ptr(),
        float64,
        0 if counts is None else counts.data_ptr(),
        query_of_target.data_ptr(),
        gap.data_ptr(),
        status.data_ptr(),
        n,
        t,
        q,
        torch.get_num_threads(),
    )
    return query_of_target, gap, status


def on_cuda(
    kernels: Kernels, cost: Tensor, num_targets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference`: csrc/cuda/linear_assignment.cu, a block per problem."""
    dtype = torch.float64 if cost.dtype == torch.float64 else torch.float32
    cost = cost.to(dtype).contiguous()
    query_of_target, gap, status = outputs = _fake(cost, num_targets)
    problems, targets, queries = cost.shape
    kernels(
        "linear_assignment",
        cost=cost,
        float64=dtype == torch.float64,
        num_targets=None if num_targets is None else num_targets.contiguous(),
        query_of_target=query_of_target,
        gap=gap,
        status=status,
        problems=problems,
        targets=targets,
        queries=queries,
        workspace=kernels.workspace("linear_assignment", cost.device, problems, targets, queries),
    )
    return outputs


_assign = register(
    "linear_assignment",
    "(Tensor cost, Tensor? num_targets, str backend) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    backends={"reference": reference, "cpu": compiled, **cuda_backends(on_cuda)},
    float64_kernels=True,
)


def linear_assignment(
    cost: Tensor, num_targets: Tensor | None = None, *, backend: str = "auto"
) -> Assignment:
    """Match targets with queries one to one, min(T, Q) pairs, at the least total cost.

    cost         [..., T, Q]  float32, float16, bfloat16, float64; no gradient. Non-finite entries
                 of valid rows count as a number so large that as few of them as possible are taken.
    num_targets  integers that broadcast over the leading dimensions: rows past it are padding.
                 Default: T. On the CPU, values outside [0, T] are refused.
    returns      Assignment(query_of_target [..., T], gap [...], status [...])

    The total equals scipy.optimize.linear_sum_assignment's; which of several optimal matchings is
    returned is up to the backend. Raises TypeError or ValueError naming the argument that is off.
    """
    sizes = checks.Sizes()
    checks.tensor("cost", cost, "... T Q", sizes)
    checks.queries("cost", sizes)
    counts = None if num_targets is None else _counts(num_targets, cost)
    chosen = resolve("linear_assignment", backend, cost.device.type, cost.dtype)
    if cost.requires_grad:
        cost = cost.detach()
    if cost.dim() == 3:
        return Assignment(*_assign(cost, counts, chosen))
    *batch, t, q = cost.shape
    problems = cost.reshape(math.prod(batch), t, q)
    query_of_target, gap, status = _assign(problems, counts, chosen)
    return Assignment(query_of_target.reshape(*batch, t), gap.reshape(batch), status.reshape(batch))


def _counts(num_targets: Tensor, cost: Tensor) -> Tensor:
    """`num_targets` as int32 [N], one for each problem of `cost`, on its device."""
    *batch, t, _ = cost.shape
    if not isinstance(num_targets, Tensor):
        raise TypeError(f"num_targets: expected a Tensor, got {type(num_targets).__name__}")
    checks.same_device("num_targets", num_targets, cost)
    if num_targets.is_floating_point() or num_targets.dtype == torch.bool:
        raise TypeError(f"num_targets: expected an integer dtype, got {num_targets.dtype}")
    try:
        counts = num_targets.expand(batch)
    except RuntimeError as error:
        raise ValueError(
            f"num_targets: expected a shape that broadcasts to {tuple(batch)},"
            f" got {tuple(num_targets.shape)}"
        ) from error
    if counts.device.type == "cpu" and not torch.compiler.is_compiling() and counts.numel():
        least, most = int(counts.min()), int(counts.max())
        if least < 0 or most > t:
            raise ValueError(f"num_targets: expected values in [0, {t}], got {least} to {most}")
    return counts.to(torch.int32).reshape(-1)
