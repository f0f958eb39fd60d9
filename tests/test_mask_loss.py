"""mask_loss: by hand, every backend against float64, gradients, rows that do not count, errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from backends import device_of, each_backend, skip_if_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import LOSS_TOLERANCE, TOLERANCE, random_targets, short
from torch import tensor

from maskformer_fast import Targets
from maskformer_fast.ops import mask_loss

SHAPES = [  # L, counts of the B images, h, w, H, W
    (1, [1], 1, 1, 1, 1),
    (3, [3, 0, 2], 4, 5, 9, 11),
    (2, [2, 1], 8, 8, 32, 32),
    (1, [2], 13, 7, 5, 6),
]


def inputs(shape, *, masks=False, dtype=torch.float32, device="cpu"):
    layers, counts, h, w, big_h, big_w = shape
    targets = random_targets(counts, (big_h, big_w), num_classes=4, masks=masks)
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(layers * len(counts), max(counts), h, w, generator=generator)
    return logits.to(device, dtype), targets.to(device)


def weights_like(losses):
    """Different weights for every row, so that no gradient can stand in for another."""
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(loss.shape, generator=generator).to(loss) for loss in losses]


def test_by_hand_two_pixels():
    targets = Targets.from_masks([tensor([[[True, False]]])], [tensor([0])])
    logits = tensor([[[[0.0, 1.0]]]], dtype=torch.float64)
    focal, dice = mask_loss(logits, targets)
    s = 1 / (1 + math.exp(-1))
    expected = (0.25 * 0.25 * math.log(2) + 0.75 * s**2 * math.log1p(math.e)) / 2
    assert focal.item() == pytest.approx(expected, abs=1e-12)
    assert dice.item() == pytest.approx(1 - (2 * 0.5 + 1) / (0.5 + s + 1 + 1), abs=1e-12)


def test_by_hand_void_leaves_sums_and_mean():
    targets = Targets.from_segments([tensor([[0, -1]])], [tensor([0])])
    logits = tensor([[[[0.0, 1.0]]]], dtype=torch.float64)
    focal, dice = mask_loss(logits, targets, ignore_void=True)
    assert focal.item() == pytest.approx(0.25 * 0.25 * math.log(2), abs=1e-12)
    assert dice.item() == pytest.approx(1 - 2 / 2.5, abs=1e-12)
    only_void = Targets.from_segments([tensor([[-1, -1]])], [tensor([0])])
    focal, dice = mask_loss(logits, only_void, ignore_void=True)
    assert (focal.item(), dice.item()) == (0, 0)


def test_upsampling_is_bilinear_without_aligned_corners():
    targets = Targets.from_segments([torch.zeros(4, 8, dtype=torch.int16)], [tensor([0])])
    logits = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    full = F.interpolate(logits, (4, 8), mode="bilinear", align_corners=False)
    for got, expected in zip(mask_loss(logits, targets), mask_loss(full, targets), strict=True):
        torch.testing.assert_close(got, expected)


@each_backend("mask_loss")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=short)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("ignore_void", [False, True])
def test_matches_float64_reference(backend, shape, dtype, masks, ignore_void):
    skip_if_refused(backend, dtype)
    logits, targets = inputs(shape, masks=masks, dtype=dtype, device=device_of(backend))
    exact = logits.double().requires_grad_()
    logits.requires_grad_()
    got = mask_loss(logits, targets, ignore_void=ignore_void, backend=backend)
    expected = mask_loss(exact, targets, ignore_void=ignore_void, backend="reference")
    for loss, truth in zip(got, expected, strict=True):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), truth, **LOSS_TOLERANCE)
    torch.autograd.backward(got, weights_like(got))
    torch.autograd.backward(expected, weights_like(expected))
    tolerance = LOSS_TOLERANCE if dtype == torch.float32 else TOLERANCE[dtype]
    torch.testing.assert_close(logits.grad.double(), exact.grad, **tolerance)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("gamma", [0, 0.5, 2])
def test_gradcheck(masks, gamma):
    logits, targets = inputs((2, [2, 1], 3, 4, 7, 5), masks=masks, dtype=torch.float64)
    for ignore_void in (False, True):
        torch.autograd.gradcheck(
            lambda x, ignore=ignore_void: mask_loss(x, targets, gamma=gamma, ignore_void=ignore),
            logits.requires_grad_(),
        )


@each_backend("mask_loss")
def test_rows_that_do_not_count_are_zero_without_gradient_even_with_nan(backend):
    logits, targets = inputs((2, [3, 1], 4, 5, 9, 11), device=device_of(backend))
    valid = torch.ones(4, 3, dtype=torch.bool, device=logits.device)
    valid[2, 0] = False
    ignored = ~(valid & targets.is_target.repeat(2, 1))
    logits[ignored] = torch.nan
    logits.requires_grad_()
    focal, dice = mask_loss(logits, targets, valid=valid, backend=backend)
    assert (focal[ignored] == 0).all() and (dice[ignored] == 0).all()
    assert focal.isfinite().all() and (dice[~ignored] > 0).all()
    (focal + dice).sum().backward()
    assert (logits.grad[ignored] == 0).all() and logits.grad.isfinite().all()
    assert (logits.grad[~ignored] != 0).any()


@each_backend("mask_loss")
@pytest.mark.parametrize("value", [80.0, -80.0, 1e4, -1e4])
def test_large_logits_stay_finite(backend, value):
    _, targets = inputs((1, [1], 4, 5, 9, 11), device=device_of(backend))
    logits = torch.full((1, 1, 4, 5), value, device=device_of(backend), requires_grad=True)
    focal, dice = mask_loss(logits, targets, backend=backend)
    (focal + dice).sum().backward()
    assert focal.isfinite().all() and dice.isfinite().all() and logits.grad.isfinite().all()


@each_backend("mask_loss")
def test_no_targets(backend):
    device = device_of(backend)
    empty = Targets.from_segments([torch.full((4, 4), -1)] * 2, [tensor([]).long()] * 2)
    logits = torch.zeros(4, 0, 2, 2, device=device)
    focal, dice = mask_loss(logits, empty.to(device), backend=backend)
    assert focal.shape == dice.shape == (4, 0)


@each_backend("mask_loss")
def test_no_images(backend):
    device = device_of(backend)
    none = Targets(
        torch.empty(0, 3, dtype=torch.long),
        torch.empty(0, dtype=torch.int32),
        segments=torch.empty(0, 8, 8, dtype=torch.int16),
    )
    logits = torch.zeros(0, 3, 2, 2, device=device, requires_grad=True)
    focal, dice = mask_loss(logits, none.to(device), backend=backend)
    assert focal.shape == dice.shape == (0, 3)
    (focal.sum() + dice.sum()).backward()
    assert logits.grad.shape == logits.shape


@each_backend("mask_loss")
def test_opcheck(backend):
    logits, targets = inputs((2, [2, 1], 4, 5, 9, 11), device=device_of(backend))
    rows = targets.is_target.repeat(2, 1)
    for with_slopes in (False, True):
        options = (targets.pixels, rows, 0.25, 2.0, True, with_slopes, backend)
        torch.library.opcheck(torch.ops.maskformer_fast.mask_loss.default, (logits, *options))


def test_compiles_without_a_graph_break_at_two_sizes():
    compiled = torch.compile(mask_loss, fullgraph=True, backend="aot_eager")
    for shape in SHAPES[1:3]:
        logits, targets = inputs(shape)
        logits.requires_grad_()
        focal, dice = compiled(logits, targets)
        (focal + dice).sum().backward()
        torch.testing.assert_close((focal, dice), mask_loss(logits, targets))
        assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask_logits": torch.zeros(3, 2, 4, 5)}, ValueError, r"mask_logits: .*\[L \* 2, 2"),
        ({"mask_logits": torch.zeros(2, 3, 4, 5)}, ValueError, "got N = 2, T = 3"),
        ({"mask_logits": torch.zeros(2, 2, 4)}, ValueError, r"expected shape \[N, T, h, w\]"),
        ({"mask_logits": torch.zeros(2, 2, 4, 5).long()}, TypeError, "mask_logits: .*int64"),
        ({"valid": torch.ones(2, 3, dtype=torch.bool)}, ValueError, "valid: .*T=2"),
        ({"valid": torch.ones(2, 2)}, TypeError, "valid: expected dtype torch.bool"),
        ({"targets": {}}, TypeError, "targets: expected Targets, got dict"),
        ({"alpha": -0.1}, ValueError, "alpha: expected a number >= 0"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    logits, targets = inputs((1, [2, 1], 4, 5, 9, 11))
    with pytest.raises(error, match=message):
        mask_loss(**({"mask_logits": logits, "targets": targets} | arguments))


@settings(max_examples=25, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 9)] * 4), alpha=st.floats(0, 1), gamma=st.floats(0, 4))
def test_matches_the_formula_on_the_upsampled_mask(sizes, alpha, gamma):
    logits, targets = inputs((1, [2], *sizes), masks=True, dtype=torch.float64)
    x = F.interpolate(logits, sizes[2:], mode="bilinear", align_corners=False)
    y, s = targets.masks.double(), x.sigmoid()
    bce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    p_right = s * y + (1 - s) * (1 - y)
    focal = ((alpha * y + (1 - alpha) * (1 - y)) * (1 - p_right) ** gamma * bce).mean((2, 3))
    dice = 1 - (2 * (y * s).sum((2, 3)) + 1) / (s.sum((2, 3)) + y.sum((2, 3)) + 1)
    got = mask_loss(logits, targets, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(got, (focal, dice), rtol=1e-9, atol=1e-12)
