"""What `visit` of mask_loss does with a line of pixels, and how what it finds flows to the cells.

Logarithms and exponentials are binary: logits are scaled by log2(e) when they are loaded.
"""

import triton
import triton.language as tl

from maskformer_fast.kernels.logistic import LN_2, LOG2_E, exp2, log2, reciprocal

LARGEST = tl.constexpr(120.0)  # 2^120 and its reciprocal are normal floats, with room to round
NOWHERE = tl.constexpr(-1e30)  # binary -z of a pixel that does not count: every term is 0
NO_CODE = tl.constexpr(-1)  # of no pixel
FIRST_VOID = tl.constexpr(1 << 15)  # negative int16, read as uint16
EMPTY = tl.constexpr(-0.0)  # of a sum: x + -0 is x, which a compiler may use, unlike x + 0


@triton.jit
def terms(x, inside, counted, limit, factors, gamma, SQUARE: tl.constexpr):
    """Of binary logits x: the focal cost / ln 2 and its derivative, r, o.

    limit    of v: LARGEST, or NOWHERE where a slot has no pixel
    factors  d focal / d softplus(-z) / o^gamma * dz / dx, inside and outside: their signs differ
    """
    v = tl.where(inside, -x, x)
    if counted is not None:
        v = tl.where(counted, v, NOWHERE)
    e = exp2(tl.minimum(v, limit, propagate_nan=tl.PropagateNan.ALL))
    right = reciprocal(1.0 + e)
    wrong = e * right
    cost = tl.maximum(log2(1.0 + e), v)  # softplus(-z), v itself where e is cut
    power = wrong * wrong if SQUARE else exp2(gamma * (v - cost))
    scale = tl.where(inside, factors[0], factors[1]) * power
    return scale * cost, scale * ((gamma * LN_2) * (right * cost) + wrong), right, wrong


@triton.jit
def logits_at(left, right, count):
    """Binary logits at two cells; 0 for a lane without pixels."""
    before, after = tl.load(left, count > 0, 0.0), tl.load(right, count > 0, 0.0)
    return before.to(tl.float32) * LOG2_E, after.to(tl.float32) * LOG2_E


@triton.jit
def keep(x, condition):
    """A sum, or an empty one."""
    return tl.where(condition, x, EMPTY)


@triton.jit
def slope_sums(sums, slope, weight):
    """(total, weighted total) of a slope, with one more of it."""
    return sums[0] + slope, sums[1] + weight * slope


@triton.jit
def visit_line(
    ends,  # (left, right): binary logits of the line at the two cells of each lane
    line,  # pointers to its pixels, to the first slot of each lane
    cover,
    columns,  # (first, count, weight of the first, step, target) of each lane
    sums,  # (cost, o, r inside) of each lane
    factors,
    gamma,
    width,
    chunks,
    OVERLAPPING: tl.constexpr,
    IGNORE_VOID: tl.constexpr,
    SQUARE: tl.constexpr,
    CONVEX: tl.constexpr,
    SLOPES: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """A line of pixels, each lane those of its interval: the sums with them, and `slope_sums` of
    d focal / dx, s (1 - s), y s (1 - s) over the line."""
    first, count, first_weight, step, target = columns
    costs, wrongs, overlap = sums
    empty = tl.full(ends[0].shape, EMPTY, tl.float32)
    focal, sigmoid, inner = (empty, empty), (empty, empty), (empty, empty)
    for chunk in range(chunks):
        begin = first + chunk * SLOTS
        start = tl.minimum(begin, width - SLOTS)  # the whole chunk lies in the image
        ahead = start - tl.minimum(first, width - SLOTS)
        for slot in tl.static_range(SLOTS):
            j = start + slot
            there = (j >= begin) & (j < first + count)
            weight = first_weight + (j - first).to(tl.float32) * step
            code = tl.load(line + ahead + slot).to(tl.int32)
            if not IGNORE_VOID:
                counted = None if SQUARE else there
            elif OVERLAPPING:
                counted = there & (tl.load(cover + ahead + slot) != 0)
            else:
                counted = there & (code < FIRST_VOID)
            inside = (
                there & (code != 0) if OVERLAPPING else code == tl.where(there, target, NO_CODE)
            )
            limit = tl.where(there, LARGEST, NOWHERE) if counted is None else LARGEST
            x = ends[0] + weight * (ends[1] - ends[0])
            cost, steep, r, o = terms(x, inside, counted, limit, factors, gamma, SQUARE)
            costs += tl.abs(cost) if CONVEX else tl.where(inside, -cost, cost)
            wrongs += o
            overlap += tl.where(inside, r, 0.0)
            if SLOPES:
                focal = slope_sums(focal, steep, weight)
                sigmoid = slope_sums(sigmoid, r * o, weight)
                inner = slope_sums(inner, tl.where(inside, r * o, 0.0), weight)
    return (costs, wrongs, overlap), focal, sigmoid, inner


@triton.jit
def row_sums(above, below, line, weight):
    """`slope_sums` of an interval's rows, for the cells above and below, with one line more."""
    above = above[0] + line[0], above[1] + line[1]
    return above, (below[0] + weight * line[0], below[1] + weight * line[1])


@triton.jit
def of_cells(above, below, next_lane):
    """What flows to the cells above: of a lane what is on its right, of the next one the rest."""
    after = above[1] - below[1]
    before = (above[0] - below[0]) - after
    return after + tl.gather(before, next_lane, 0)
