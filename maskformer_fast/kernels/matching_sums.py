"""The sums over pixels that matching_cost.py makes costs of, in Triton.

    pos = (1-s)^gamma softplus(-x)    neg = s^gamma softplus(x)    x = mask_queries . pixel_features
    sums[m, t] = sum_p (alpha pos - (1-alpha) neg)[m, p] y[p, t],   sum_p s[m, p] y[p, t]
    sums[m]    = sum_p neg[m, p]

Rows m = l * Q + q are the queries of all layers of one image; target T, past the last, is the whole
image: its y is 1 where a pixel counts.
"""

import triton
import triton.language as tl

from maskformer_fast.kernels.logistic import INTERPRETED, LOG2_E, log2, reciprocal

BITS = tl.constexpr(32)  # of a word: one target each
LARGEST = tl.constexpr(2.0**127)
NOWHERE = tl.constexpr(-1e4)  # a logit whose s and neg are exactly 0, and pos finite


@triton.jit
def terms(x, root, gamma, SQUARE: tl.constexpr):
    """root^2 pos, neg and s of float32 x; pos and neg in units of ln 2. SQUARE: gamma is 2.

    There the powers are small wherever softplus and 1 - s lose digits, so that these follow from
    s and log2(1 + e^-x) alone: three special functions and 11 other instructions.
    """
    v = x * -LOG2_E
    if SQUARE:
        d = 1.0 + tl.exp2(v)
        s = reciprocal(d)
        softplus_neg = tl.maximum(log2(tl.minimum(d, LARGEST)), v)  # v: where d is infinite
        rest = root - root * s
        return rest * rest * softplus_neg, s * s * (softplus_neg - v), s
    e = tl.exp2(-tl.abs(v))
    r = reciprocal(1.0 + e)
    softplus = log2(1.0 + e)
    softplus_pos, softplus_neg = softplus + tl.maximum(-v, 0.0), softplus + tl.maximum(v, 0.0)
    pos = root * root * tl.exp2(-gamma * softplus_pos) * softplus_neg
    neg = tl.exp2(-gamma * softplus_neg) * softplus_pos
    return pos, neg, tl.where(v > 0, e * r, r)


@triton.jit
def nearest_bfloat16(x):
    """float32 x rounded to bfloat16, ties to even, as float32."""
    bits = x.to(tl.int32, bitcast=True)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def split(x):
    """float32 x as the sum of two bfloat16, within 2^-16 of it.

    Two elements at a time: a single one's conversion takes the unit of the special functions. The
    interpreter, which multiplies no bfloat16, gets the same numbers as float32.
    """
    if INTERPRETED:
        high = nearest_bfloat16(x)
        return high, nearest_bfloat16(x - high)
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 a, b;
        cvt.rn.bf16x2.f32 $0, $3, $2;
        shl.b32 a, $0, 16;
        and.b32 b, $0, 0xffff0000;
        sub.f32 a, $2, a;
        sub.f32 b, $3, b;
        cvt.rn.bf16x2.f32 $1, b, a;
        }""",
        "=&r,=&r,r,r",
        [x],
        dtype=(tl.bfloat16, tl.bfloat16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def stacked(above, below):
    """[M, P] and [M, P] as [2 M, P]."""
    both = tl.permute(tl.join(above, below), (2, 0, 1))
    return tl.reshape(both, (2 * above.shape[0], above.shape[1]))


@triton.jit
def add_products(total, above, below, y, SPLIT: tl.constexpr):
    """total [2 M, T] + stacked(above, below) @ y for y of 0 and 1.

    In IEEE float32, or SPLIT: each factor as the sum of two bfloat16.
    """
    if SPLIT:
        high_above, low_above = split(above)
        high_below, low_below = split(below)
        y = y.to(high_above.dtype)
        total = tl.dot(stacked(high_above, high_below), y, total)
        return tl.dot(stacked(low_above, low_below), y, total)
    return tl.dot(stacked(above, below), y.to(tl.float32), total, input_precision="ieee")


@triton.jit(do_not_specialize=["rows", "layer_rows", "targets", "tiles"])
def sums(
    queries,  # [L, B, Q, C]; FROM_LOGITS: not read
    features,  # [B, C, P]; FROM_LOGITS: the logits [B, Q, P]
    words,  # [B, planes, P]
    parts,  # [splits, B, 2 (T + 1) + 1, M] float32: the sums of target 0 to T, and of neg
    rows,  # M
    layer_rows,  # Q
    channels,
    cells,
    targets,
    tiles,  # of each split
    root,  # of alpha
    beta,  # 1 - alpha
    gamma,
    query_l,
    query_b,
    query_q,
    query_c,
    feature_b,
    feature_c,
    feature_p,
    FROM_LOGITS: tl.constexpr,
    SQUARE: tl.constexpr,
    ALL_COUNT: tl.constexpr,
    RESIDENT: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program = BLOCK_M rows, BLOCK_T targets and `tiles` tiles of BLOCK_P pixels of one image.

    grid     (cdiv(M, BLOCK_M) * cdiv(T + 1, BLOCK_T) * splits, B); row blocks of the same pixels
             side by side, then target blocks (which compute the terms again), so that features are
             read from memory once, else from L2
    reads    queries once (RESIDENT: C <= BLOCK_C, they stay in shared memory), features and bits of
             the targets once per row block and target block
    writes   parts once
    numerics sums in float32, pixels in order; IEEE products for float32; half inputs: see SPLIT
    edges    m >= M, c >= C masked; ALL_COUNT: all pixels count and tiles are full, else a pixel
             that does not count has the logit NOWHERE, whatever its features; offsets int64
    """
    row_blocks, target_blocks = tl.cdiv(rows, BLOCK_M), tl.cdiv(targets + 1, BLOCK_T)
    column = tl.program_id(0) // row_blocks
    split, block = column // target_blocks, column % target_blocks
    b = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0) % row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    m_in = m < rows
    c = tl.arange(0, BLOCK_C).to(tl.int64)
    from_query = queries + b * query_b
    from_query += (m // layer_rows).to(tl.int64)[:, None] * query_l
    from_query += (m % layer_rows).to(tl.int64)[:, None] * query_q
    m = m.to(tl.int64)
    from_features = features + b * feature_b
    if FROM_LOGITS:
        from_features += m[:, None] * feature_c
    if RESIDENT:
        from_features += c[:, None] * feature_c
        query = tl.load(from_query + c[None] * query_c, m_in[:, None] & (c < channels)[None], 0.0)
    planes = targets // BITS + 1
    plane = block * (BLOCK_T // BITS) + tl.arange(0, BLOCK_T // BITS)
    words += b * planes * cells
    from_words = words + plane.to(tl.int64)[None] * cells
    whole_image = words + (planes - 1).to(tl.int64) * cells
    both_sums = tl.zeros((2 * BLOCK_M, BLOCK_T), tl.float32)
    sums_neg = tl.zeros((BLOCK_M,), tl.float32)
    for tile in range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(cells, BLOCK_P))):
        p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        p_in = p < cells
        if ALL_COUNT:
            p_in = tl.zeros((BLOCK_P,), tl.int32) == 0
        at = from_features + p.to(tl.int64)[None] * feature_p
        if FROM_LOGITS:
            x = tl.load(at, m_in[:, None] & p_in[None], 0.0).to(tl.float32)
        elif RESIDENT:
            feature = tl.load(at, (c < channels)[:, None] & p_in[None], 0.0)
            x = tl.dot(query, feature, input_precision=PRECISION)
        else:
            x = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
            for start in range(0, channels, BLOCK_C):
                c_at = start + c
                c_in = c_at < channels
                from_queries = from_query + c_at[None] * query_c
                query = tl.load(from_queries, m_in[:, None] & c_in[None], 0.0)
                from_channels = at + c_at[:, None] * feature_c
                feature = tl.load(from_channels, c_in[:, None] & p_in[None], 0.0)
                x = tl.dot(query, feature, x, input_precision=PRECISION)
        if not ALL_COUNT:
            counted = tl.load(whole_image + p, p_in, 0) >> (targets % BITS) & 1
            x = tl.where((counted != 0)[None], x, NOWHERE)
        word = tl.load(from_words + p[:, None], p_in[:, None] & (plane < planes)[None], 0)
        y = (word[:, :, None] >> tl.arange(0, BITS)[None, None]) & 1
        y = tl.where(tl.reshape(y, (BLOCK_P, BLOCK_T)) != 0, 1.0, 0.0)
        pos, neg, s = terms(x, root, gamma, SQUARE)
        both_sums = add_products(both_sums, pos - beta * neg, s, y, SPLIT)
        sums_neg += tl.sum(neg, 1)
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    kinds = (targets + 1).to(tl.int64)
    parts += (split.to(tl.int64) * tl.num_programs(1) + b) * (2 * kinds + 1) * rows + m
    into = parts[:, None] + t.to(tl.int64)[None] * rows
    known = m_in[:, None] & (t < kinds)[None]
    both_sums = tl.permute(tl.reshape(both_sums, (2, BLOCK_M, BLOCK_T)), (1, 2, 0))
    sums_focal, sums_s = tl.split(both_sums)
    tl.store(into, sums_focal, known)
    tl.store(into + kinds * rows, sums_s, known)
    if block == 0:
        tl.store(parts + 2 * kinds * rows, sums_neg, m_in)
