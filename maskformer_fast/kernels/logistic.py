"""Special functions of the Triton kernels, one instruction each.

In PTX they are ex2.approx (2 ulp), rcp.approx (1 ulp) and lg2.approx (2^-22 absolute between 1 and
2), instead of functions that handle the whole float range; the interpreter, which has no PTX,
computes them exactly rounded. Exponentials and logarithms are binary: logits are scaled first.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


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
    """sigmoid(x) of float32 x, within 4 + |x| ulp: the binary logit rounds, as log2(e) does."""
    e = exp2(-tl.abs(x) * LOG2_E)
    r = reciprocal(1.0 + e)
    return tl.where(x >= 0, r, e * r)
