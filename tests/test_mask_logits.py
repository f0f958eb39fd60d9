"""mask_logits and mask_probs: by hand, backends against float64, gradients, compile, errors."""

import subprocess
import sys

import pytest
import torch
from backends import device_of, each_backend, skip_if_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import TOLERANCE, short
from torch import tensor

from maskformer_fast.ops import mask_logits, mask_probs
from maskformer_fast.ops.mask_logits import reference

SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 7, 11), (1, 17, 31, 16, 33), (2, 100, 64, 15, 17)]
# B, Q, C, h, w


def inputs(shape, dtype=torch.float32, device="cpu", seed=0):
    b, q, c, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(b, q, c, generator=generator) / c**0.5
    features = torch.randn(b, c, h, w, generator=generator)
    return queries.to(device, dtype), features.to(device, dtype)


def test_by_hand():
    queries = tensor([[[1.0, 0.0], [2.0, -1.0]]])
    features = tensor([[[[0.0, 3.0]], [[5.0, 6.0]]]])
    assert mask_logits(queries, features).tolist() == [[[[0.0, 3.0]], [[-5.0, 0.0]]]]
    assert mask_probs(queries, features)[0, :, 0, [0, 1]].diagonal().tolist() == [0.5, 0.5]


@each_backend("mask_logits")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=short)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sigmoid", [False, True])
def test_matches_float64_reference(backend, shape, dtype, sigmoid):
    skip_if_refused(backend, dtype)
    queries, features = inputs(shape, dtype, device_of(backend))
    op = mask_probs if sigmoid else mask_logits
    got = op(queries, features, backend=backend)
    expected = reference(queries.double(), features.double(), sigmoid)
    assert got.dtype == dtype and got.is_contiguous()
    torch.testing.assert_close(got.double(), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("op", [mask_logits, mask_probs])
def test_gradcheck(op):
    queries, features = inputs((2, 3, 4, 2, 3), torch.float64)
    torch.autograd.gradcheck(op, (queries.requires_grad_(), features.requires_grad_()))


@each_backend("mask_logits")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=short)
@pytest.mark.parametrize("op", [mask_logits, mask_probs])
def test_gradients_match_float64_reference(backend, dtype, op):
    skip_if_refused(backend, dtype)
    leaves = [t.requires_grad_() for t in inputs((2, 3, 5, 7, 11), dtype, device_of(backend))]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    weight = torch.randn(2, 3, 7, 11, generator=torch.Generator().manual_seed(1)).to(leaves[0])
    op(*leaves, backend=backend).backward(weight)
    op(*exact, backend="reference").backward(weight.double())
    for got, expected in zip(leaves, exact, strict=True):
        tolerance = {k: 4 * v for k, v in TOLERANCE[dtype].items()}  # sums of 77 products
        torch.testing.assert_close(got.grad.double(), expected.grad, **tolerance)


@each_backend("mask_logits")
def test_opcheck(backend):
    queries, features = inputs((2, 3, 4, 5, 6), device=device_of(backend))
    ops = torch.ops.maskformer_fast
    for sigmoid in (False, True):
        torch.library.opcheck(ops.mask_logits.default, (queries, features, sigmoid, backend))
        grad = torch.randn(2, 3, 5, 6).to(queries)
        torch.library.opcheck(
            ops.mask_logits_backward.default, (grad, queries, features, sigmoid, backend)
        )


def test_compiles_without_a_graph_break_at_two_sizes():
    compiled = torch.compile(mask_probs, fullgraph=True, backend="aot_eager")
    for shape in SHAPES[1:3]:
        leaves = [t.requires_grad_() for t in inputs(shape)]
        got = compiled(*leaves)
        got.sum().backward()
        torch.testing.assert_close(got, mask_probs(*leaves))
        assert all(leaf.grad is not None for leaf in leaves)


@each_backend("mask_logits")
def test_nan_and_infinity_stay_in_their_query(backend):
    queries, features = inputs((1, 3, 4, 5, 6), device=device_of(backend))
    queries[0, 1, 2], queries[0, 2, 0] = torch.nan, torch.inf
    logits = mask_logits(queries, features, backend=backend)
    assert logits[0, 0].isfinite().all()
    assert logits[0, 1].isnan().all() and logits[0, 2].isinf().all()


def test_autocast_changes_nothing():
    queries, features = inputs((1, 3, 64, 5, 6))
    with torch.autocast("cpu", torch.bfloat16):
        assert mask_logits(queries, features).equal(mask_logits(queries, features))
        got = mask_logits(queries, features)
    assert got.equal(mask_logits(queries, features)) and got.dtype == torch.float32


@each_backend("mask_logits")
@pytest.mark.parametrize("setting", ["old", "new"])
def test_a_lower_matmul_precision_elsewhere_changes_nothing(backend, setting):
    """With PyTorch's older and its newer way of allowing it; in a process of its own."""
    allow = {
        "old": "torch.set_float32_matmul_precision('medium')",
        "new": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16';"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    }[setting]
    script = f"""
import torch
from maskformer_fast.ops import mask_logits
device = {device_of(backend)!r}
queries, features = torch.randn(1, 100, 256).to(device), torch.randn(1, 256, 40, 40).to(device)
expected = mask_logits(queries, features, backend={backend!r})
{allow}
before = torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision
assert mask_logits(queries, features, backend={backend!r}).equal(expected)
after = torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision
assert before == after
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_no_image_is_legal():
    assert mask_logits(torch.zeros(0, 3, 4), torch.zeros(0, 4, 5, 6)).shape == (0, 3, 5, 6)


@pytest.mark.parametrize(
    ("queries", "features", "message"),
    [
        (torch.zeros(2, 0, 4), torch.zeros(2, 4, 5, 6), "mask_queries: .*Q = 0"),
        (torch.zeros(2, 3), torch.zeros(2, 4, 5, 6), r"mask_queries: expected shape \[B, Q, C\]"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 5, 5, 6), r"pixel_features: .*C=4.* got \(2, 5, 5"),
        (torch.zeros(1, 3, 4), torch.zeros(2, 4, 5, 6), r"pixel_features: .*B=1"),
    ],
)
def test_a_wrong_shape_is_named(queries, features, message):
    with pytest.raises(ValueError, match=message):
        mask_logits(queries, features)


@pytest.mark.parametrize(
    ("queries", "features", "message"),
    [
        (torch.zeros(2, 3, 4).int(), torch.zeros(2, 4, 5, 6), "mask_queries: .*int32"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4, 5, 6).half(), "pixel_features: .*float16"),
        ([[1.0]], torch.zeros(2, 4, 5, 6), "mask_queries: expected a torch.Tensor, got list"),
    ],
)
def test_a_wrong_type_is_named(queries, features, message):
    with pytest.raises(TypeError, match=message):
        mask_logits(queries, features)


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 9)] * 5), seed=st.integers(0, 1000))
def test_matches_a_loop_over_queries(shape, seed):
    queries, features = inputs(shape, torch.float64, seed=seed)
    for q in range(shape[1]):
        expected = (queries[:, q, :, None, None] * features).sum(1)
        torch.testing.assert_close(mask_logits(queries, features)[:, q], expected)
