"""What matching_cost and mask_loss need of a logit, in Triton: the twin of ops/focal.py.

    e = exp(-|x|)    r = 1 / (1 + e)    l = log(1 + e)

give sigmoid, 1 - sigmoid and both softplus without cancellation: three special functions an
element. In PTX they are ex2.approx (2 ulp), rcp.approx (1 ulp) and lg2.approx (2^-22 absolute
between 1 and 2), instead of a division and a logarithm that handle the whole float range; the
interpreter, which has no PTX, computes them exactly rounded.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def reciprocal(x):
    """1 / x for normal x."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def log2(x):
    """log2(x) for normal x > 0."""
    if INTERPRETED:
        return tl.log2(x)
    return tl.inline_asm_elementwise(
        "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def exp2(x):
    """2^x; 0 where that is no normal float."""
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def sigmoid(x):
    """sigmoid(x) of float32 x."""
    e = tl.exp(-tl.abs(x))
    r = reciprocal(1.0 + e)
    return tl.where(x >= 0, r, e * r)


@triton.jit
def logistic(x):
    """sigmoid(x), sigmoid(-x), softplus(x), softplus(-x) of float32 x."""
    e = tl.exp(-tl.abs(x))
    r = reciprocal(1.0 + e)
    far = e * r
    softplus = LN_2 * log2(1.0 + e)
    s, rest = tl.where(x >= 0, r, far), tl.where(x >= 0, far, r)
    return s, rest, softplus + tl.maximum(x, 0.0), softplus + tl.maximum(-x, 0.0)


@triton.jit
def power(base, softplus, gamma, SQUARE: tl.constexpr):
    """base^gamma where base = exp(-softplus), finite with its derivative for every gamma >= 0.

    SQUARE: gamma is 2.
    """
    if SQUARE:
        return base * base
    return tl.exp(-gamma * softplus)
