"""matching_cost: by hand, every backend against float64, void, padding, NaN, compile, errors."""

import math

import pytest
import torch
from backends import device_of, each_backend, skip_if_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import LOSS_TOLERANCE, TOLERANCE, random_targets, short
from torch import tensor

from maskformer_fast import Targets
from maskformer_fast.ops import mask_logits, matching_cost, matching_cost_from_logits
from maskformer_fast.ops.matching_cost import masks_at_grid

CLASSES = 5
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 2, 7, 8, 4, 5), (3, 1, 33, 16, 9, 17)]  # L, B, Q, C, h, w


def inputs(shape, dtype=torch.float32, device="cpu", seed=0):
    layers, b, q, c, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    class_logits = 2 * torch.randn(layers, b, q, CLASSES + 1, generator=generator)
    queries = torch.randn(layers, b, q, c, generator=generator)
    features = torch.randn(b, c, h, w, generator=generator)
    return [t.to(device, dtype) for t in (class_logits, queries, features)]


def counts(b: int) -> list[int]:
    return [3, 0, 2, 1][:b]


def one_pixel_cost(x: float, y: float, p_class: float, alpha: float, gamma: float) -> float:
    """The formula of one pixel, one target and one query, in Python."""
    s = 1 / (1 + math.exp(-x))
    pos = alpha * (1 - s) ** gamma * math.log1p(math.exp(-x))
    neg = (1 - alpha) * s**gamma * math.log1p(math.exp(x))
    dice = 1 - (2 * y * s + 1) / (s + y + 1)
    return -p_class + 20 * (y * pos + (1 - y) * neg) + dice


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.0), (0.5, 0.5)])
def test_by_hand_one_pixel(inside, alpha, gamma):
    targets = Targets.from_masks([tensor([[[inside]]])], [tensor([1])])
    class_logits = tensor([[[0.0, math.log(3.0), 0.0]]], dtype=torch.float64)  # p = 1/5, 3/5, 1/5
    mask = tensor([[[[0.7]]]], dtype=torch.float64)
    cost = matching_cost_from_logits(class_logits, mask, targets, alpha=alpha, gamma=gamma)
    expected = one_pixel_cost(0.7, float(inside), 0.6, alpha, gamma)
    assert cost.item() == pytest.approx(expected, abs=1e-12)


def test_by_hand_four_pixels_with_void():
    # x = 0 everywhere: s = 1/2, softplus = ln 2. Target: one pixel; one of the others is void.
    targets = Targets.from_segments([tensor([[0, 1], [1, -1]])], [tensor([0, 0])])
    class_logits, mask = torch.zeros(1, 1, 2).double(), torch.zeros(1, 1, 2, 2).double()
    ln2 = math.log(2)
    for ignore, pixels in ((False, 4), (True, 3)):
        cost = matching_cost_from_logits(class_logits, mask, targets, ignore_void=ignore)
        focal = (0.25 * 0.25 * ln2 + (pixels - 1) * 0.75 * 0.25 * ln2) / pixels
        dice = 1 - (2 * 0.5 + 1) / (pixels / 2 + 1 + 1)
        assert cost[0, 0, 0].item() == pytest.approx(-0.5 + 20 * focal + dice, abs=1e-12)


def test_only_void_pixels_leave_the_class_and_an_empty_dice():
    targets = Targets.from_segments([torch.full((2, 2), -1)], [tensor([0])])
    class_logits, mask = torch.zeros(1, 1, 2), torch.randn(1, 1, 2, 2)
    cost = matching_cost_from_logits(class_logits, mask, targets, ignore_void=True)
    assert cost.item() == -0.5  # focal 0; dice 1 - 1/1


def test_the_grid_reads_the_nearest_pixel_by_integers():
    segments = torch.arange(5)[:, None].expand(5, 7)  # pixel (i, j) belongs to target i
    masks = masks_at_grid(segments[None].short(), 5, (3, 2))
    rows = [(i * 5) // 3 for i in range(3)]
    assert rows == [0, 1, 3]
    assert masks[0].int().argmax(0).tolist() == [[r, r] for r in rows]


@each_backend("matching_cost")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=short)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("ignore_void", [False, True])
def test_matches_float64_reference(backend, shape, dtype, masks, ignore_void):
    skip_if_refused(backend, dtype)
    tensors = inputs(shape, dtype, device_of(backend))
    targets = random_targets(counts(shape[1]), (11, 13), num_classes=CLASSES, masks=masks)
    options = {"ignore_void": ignore_void, "mask_weight": 5, "dice_weight": 3, "class_weight": 2}
    got = matching_cost(*tensors, targets.to(device_of(backend)), backend=backend, **options)
    exact = matching_cost(*(t.double() for t in tensors), targets, backend="reference", **options)
    assert got.dtype == torch.float32 and not got.requires_grad
    tolerance = LOSS_TOLERANCE if dtype == torch.float32 else TOLERANCE[dtype]
    torch.testing.assert_close(got.double().cpu(), exact, **tolerance)


@each_backend("matching_cost_from_logits")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=short)
@pytest.mark.parametrize("ignore_void", [False, True])
def test_from_logits_matches_float64_reference(backend, dtype, ignore_void):
    skip_if_refused(backend, dtype)
    device = device_of(backend)
    class_logits, queries, features = inputs((1, 3, 7, 8, 9, 10), dtype, device)
    logits = mask_logits(queries[0], features)
    targets = random_targets([3, 0, 2], (20, 31), num_classes=CLASSES, masks=False)
    options = {"ignore_void": ignore_void}
    got = matching_cost_from_logits(
        class_logits[0], logits, targets.to(device), backend=backend, **options
    )
    exact = matching_cost_from_logits(
        class_logits[0].double(), logits.double(), targets, backend="reference", **options
    )
    torch.testing.assert_close(got.double().cpu(), exact, **LOSS_TOLERANCE)


def test_both_forms_of_targets_give_the_same_cost():
    tensors = inputs((2, 2, 7, 8, 4, 5))
    targets = random_targets([3, 2], (9, 9), num_classes=CLASSES, masks=False)
    masks = torch.stack([targets.segments == t for t in range(3)], 1)
    same = Targets(targets.labels, targets.num_targets, masks=masks)
    for ignore in (False, True):
        assert matching_cost(*tensors, targets, ignore_void=ignore).equal(
            matching_cost(*tensors, same, ignore_void=ignore)
        )


@each_backend("matching_cost")
def test_padding_rows_are_zero_even_with_nan(backend):
    tensors = inputs((2, 2, 7, 8, 4, 5), device=device_of(backend))
    targets = random_targets([1, 3], (9, 9), num_classes=CLASSES, masks=False)
    tensors[1][0, 0] = torch.nan
    targets.labels[0, 1:] = torch.tensor([-1, CLASSES])  # padding may hold anything
    cost = matching_cost(*tensors, targets.to(device_of(backend)), backend=backend)
    assert (cost[:, 0, 1:] == 0).all()
    assert cost[0, 0, 0].isnan().all() and cost[1].isfinite().all()


@each_backend("matching_cost_from_logits")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_give_non_finite_costs_of_their_query_only(backend, bad):
    device = device_of(backend)
    targets = random_targets([2], (4, 4), num_classes=CLASSES, masks=False).to(device)
    class_logits, logits = torch.zeros(1, 3, CLASSES + 1), torch.randn(1, 3, 4, 4)
    logits[0, 1, 2, 2] = bad
    cost = matching_cost_from_logits(
        class_logits.to(device), logits.to(device), targets, backend=backend
    )
    assert not cost[0, :, 1].isfinite().any() and cost[0, :, [0, 2]].isfinite().all()


@each_backend("matching_cost")
def test_no_targets(backend):
    device = device_of(backend)
    empty = Targets.from_segments([torch.full((4, 4), -1)] * 2, [tensor([]).long()] * 2)
    tensors = inputs((2, 2, 7, 8, 4, 5), device=device)
    assert matching_cost(*tensors, empty.to(device), backend=backend).shape == (2, 2, 0, 7)


@each_backend("matching_cost")
def test_opcheck_and_compile(backend):
    device = device_of(backend)
    tensors = inputs((2, 2, 7, 8, 4, 5), device=device)
    targets = random_targets([2, 1], (9, 9), num_classes=CLASSES, masks=False).to(device)
    fields = (targets.labels, targets.num_targets, targets.pixels)
    numbers = (1.0, 20.0, 1.0, 0.25, 2.0, True, backend)
    ops = torch.ops.maskformer_fast
    torch.library.opcheck(ops.matching_cost.default, (*tensors, *fields, *numbers))
    logits = mask_logits(tensors[1][0], tensors[2])
    torch.library.opcheck(
        ops.matching_cost_from_logits.default, (tensors[0][0], logits, *fields, *numbers)
    )
    compiled = torch.compile(matching_cost, fullgraph=True, backend="aot_eager")
    for shape in SHAPES[1:]:
        tensors = inputs(shape, device=device)
        targets = random_targets(counts(shape[1]), (9, 9), num_classes=CLASSES, masks=False)
        arguments = (*tensors, targets.to(device))
        expected = matching_cost(*arguments, backend=backend)
        torch.testing.assert_close(compiled(*arguments, backend=backend), expected)


def test_autocast_changes_nothing():
    tensors = inputs((2, 2, 7, 8, 4, 5))
    targets = random_targets([2, 1], (9, 9), num_classes=CLASSES, masks=False)
    expected = matching_cost(*tensors, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert matching_cost(*tensors, targets).equal(expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": None}, TypeError, "targets: expected Targets, got NoneType"),
        ({"targets": "three"}, ValueError, "targets: expected 2 images, got 3"),
        ({"alpha": math.nan}, ValueError, "alpha: expected a number >= 0, got nan"),
        ({"gamma": -1}, ValueError, "gamma: expected a number >= 0, got -1"),
        ({"mask_queries": torch.zeros(2, 2, 0, 8)}, ValueError, "Q = 0|class_logits"),
        ({"pixel_features": torch.zeros(2, 9, 4, 5)}, ValueError, "pixel_features: .*C=8"),
    ],
)
def test_bad_input_is_named(change, error, message):
    names = ("class_logits", "mask_queries", "pixel_features")
    arguments = dict(zip(names, inputs((2, 2, 7, 8, 4, 5)), strict=True))
    arguments["targets"] = random_targets([2, 1], (9, 9), num_classes=CLASSES, masks=False)
    if change.get("targets") == "three":
        change = {"targets": random_targets([1] * 3, (9, 9), num_classes=CLASSES, masks=False)}
    with pytest.raises(error, match=message):
        matching_cost(**(arguments | change))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    x=st.floats(-30, 30),
    seed=st.integers(0, 1000),
)
def test_matches_a_loop_over_pairs(sizes, x, seed):
    h, w, big_h, big_w = sizes
    generator = torch.Generator().manual_seed(seed)
    logits = (x * torch.randn(1, 2, h, w, generator=generator)).double()
    targets = random_targets([2], (big_h, big_w), num_classes=2, masks=True, seed=seed)
    cost = matching_cost_from_logits(
        torch.zeros(1, 2, 3).double(), logits, targets, class_weight=0, dice_weight=0
    )
    for t in range(2):
        for q in range(2):
            total = 0.0
            for i in range(h):
                for j in range(w):
                    inside = bool(targets.masks[0, t, i * big_h // h, j * big_w // w])
                    v = logits[0, q, i, j].item() * (1 if inside else -1)
                    weight = 0.25 if inside else 0.75
                    soft = math.log1p(math.exp(-abs(v))) + max(-v, 0)
                    total += weight * math.exp(-2 * (soft + v)) * soft
            assert cost[0, t, q].item() == pytest.approx(20 * total / (h * w), rel=1e-9, abs=1e-12)
