import math

import pytest
import torch
from backends import device_of, each_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from map_cases import (
    ADVERSARIAL,
    adversarial_maps,
    class_logits_of,
    interpolate,
    mask_logits_of,
    output_sizes,
    random_predictions,
    regions,
    run_on,
)

from maskformer_fast.ops.instance_masks import instance_masks


def test_by_hand():
    class_logits = class_logits_of((0, 0.8), (1, 0.7), (2, 0.9), num_classes=2)
    mask_logits = mask_logits_of([0.9, 0.7, 0.4, 0.1], [0.1, 0.1, 0.95, 0.1], [0.9] * 4)
    got = instance_masks(class_logits, mask_logits, (1, 4), top_k=2)
    # 0.8 * (0.9 + 0.7) / 2 and 0.7 * 0.95; the third query is "no object"
    torch.testing.assert_close(got.scores, torch.tensor([[0.665, 0.64]]))
    assert got.labels.tolist() == [[1, 0]]
    assert got.masks.tolist() == [[[[False, False, True, False]], [[True, True, False, False]]]]
    assert got.boxes.tolist() == [[[2, 0, 3, 1], [0, 0, 2, 1]]]
    dtypes = [field.dtype for field in got]
    assert dtypes == [torch.float32, torch.int64, torch.bool, torch.int32]


def test_a_query_may_appear_under_two_labels():
    class_logits = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.1, 0.7]]]).log()
    got = instance_masks(class_logits, torch.full((1, 2, 2, 2), 50.0), (2, 2), top_k=2)
    assert got.labels.tolist() == [[0, 1]]
    torch.testing.assert_close(got.scores, torch.tensor([[0.6, 0.3]]))
    assert got.masks.all()


def test_only_thing_classes_are_considered_and_before_the_top_k():
    class_logits = class_logits_of((1, 0.9), (0, 0.6), (2, 0.7), num_classes=3)
    masks = torch.full((1, 3, 1, 1), 50.0)
    got = instance_masks(class_logits, masks, (1, 1), top_k=2, thing_classes=[2, 0, 2])
    assert got.labels.tolist() == [[2, 0]]
    torch.testing.assert_close(got.scores, torch.tensor([[0.7, 0.6]]))
    assert instance_masks(class_logits, masks, (1, 1), thing_classes=[0]).scores.shape == (1, 3)
    assert instance_masks(class_logits, masks, (1, 1), thing_classes=[]).masks.shape == (1, 0, 1, 1)


def test_ties_are_ordered_by_query_and_class():
    got = instance_masks(torch.zeros(1, 3, 3), torch.full((1, 3, 1, 1), 9.0), (1, 1), top_k=5)
    assert got.labels.tolist() == [[0, 1, 0, 1, 0]]
    masks = torch.tensor([5.0, -5, 5]).view(1, 3, 1, 1)
    got = instance_masks(torch.zeros(1, 3, 2), masks, (1, 1))
    assert got.masks.flatten().tolist() == [True, True, False]


def test_an_empty_mask_has_score_and_box_0():
    got = instance_masks(class_logits_of((0, 0.9), num_classes=1), torch.zeros(1, 1, 3, 3), (5, 5))
    assert got.scores.tolist() == [[0.0]]
    assert got.boxes.tolist() == [[[0, 0, 0, 0]]]
    assert not got.masks.any()


def test_boxes_are_half_open_pixel_edges():
    mask_logits = torch.full((1, 1, 6, 7), -9.0)
    mask_logits[0, 0, 2:5, 3] = 9
    mask_logits[0, 0, 2, 5] = 9
    got = instance_masks(class_logits_of((0, 0.9), num_classes=1), mask_logits, (6, 7))
    assert got.boxes.tolist() == [[[3, 2, 6, 5]]]


def plain_formula(class_logits, mask_logits, size, top_k, things):
    """One image in float64: [(score, query, label, mask)] in order."""
    probs = class_logits.double().softmax(-1)[:, :-1]
    pairs = [(-probs[q, k].item(), q, k) for q in range(len(probs)) for k in sorted(things)]
    found = []
    for negative, q, k in sorted(pairs)[:top_k]:
        x = interpolate(mask_logits[q : q + 1], size)[0]
        inside = x[x > 0].sigmoid()
        mean = inside.mean().item() if len(inside) else 0.0
        found.append((negative * mean, q, k, x > 0))
    return sorted(found, key=lambda entry: entry[:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(
    sizes=st.tuples(*[st.integers(1, n) for n in (2, 6, 4, 5, 5)]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 12)),
    top_k=st.integers(1, 20),
    things=st.none() | st.sets(st.integers(0, 3)),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_equals_the_plain_formula(dtype, sizes, size, top_k, things, seed):
    class_logits, mask_logits = random_predictions(*sizes, seed=seed)
    if things is not None:
        things = {label for label in things if label < sizes[2]}
    got = instance_masks(
        class_logits.to(dtype), mask_logits.to(dtype), size, top_k=top_k, thing_classes=things
    )
    considered = range(sizes[2]) if things is None else things
    for image in range(sizes[0]):
        expected = plain_formula(class_logits[image], mask_logits[image], size, top_k, considered)
        scores = torch.tensor([-entry[0] for entry in expected], dtype=dtype)
        torch.testing.assert_close(got.scores[image], scores, rtol=1e-5, atol=1e-6)
        for rank, (_, q, label, mask) in enumerate(expected):
            if (scores - scores[rank]).abs().lt(1e-6).sum() > 1:
                continue  # equal scores may change places by rounding
            near_edge = interpolate(mask_logits[image, q : q + 1], size)[0].abs() < 1e-5
            assert got.labels[image, rank] == label
            assert not ((got.masks[image, rank] != mask) & ~near_edge).any()


def test_region_equals_cropping_and_reads_no_cell_beyond_it():
    class_logits, mask_logits = random_predictions(2, 6, 4, 8, 9)
    fractional = torch.tensor([[5.5, 3.2], [6.0, 3.9]])
    expected = instance_masks(class_logits, mask_logits, (40, 25), region=fractional)
    mask_logits[:, :, 6:] = math.nan
    mask_logits[..., 4:] = math.nan
    got = instance_masks(class_logits, mask_logits, (40, 25), region=fractional)
    region = torch.tensor([[6.0, 4.0]] * 2)
    whole = instance_masks(class_logits, mask_logits, (40, 25), region=region)
    cropped = instance_masks(class_logits, mask_logits[:, :, :6, :4], (40, 25))
    for field in range(4):
        assert torch.equal(got[field], expected[field])
        assert torch.equal(whole[field], cropped[field])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_inputs_are_computed_in_float32_also_under_autocast(dtype):
    class_logits, mask_logits = random_predictions(2, 6, 4, 8, 9, dtype=dtype)
    expected = instance_masks(class_logits.float(), mask_logits.float(), (20, 20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = instance_masks(class_logits, mask_logits, (20, 20))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_nan_is_outside_the_mask_and_its_probability_0():
    class_logits, mask_logits = random_predictions(1, 3, 2, 4, 4)
    class_logits[0, 0] = math.nan
    mask_logits[0, 1] = math.nan
    got = instance_masks(class_logits, mask_logits, (9, 9))
    assert got.scores.isfinite().all()
    assert (got.scores > 0).sum() == 2  # the third query under both labels


@each_backend("instance_masks")
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_maps(backend, name):
    class_logits, mask_logits = random_predictions(1, 6, 4, 1, 1)[0], adversarial_maps(name, 6)
    for size in output_sizes(mask_logits):
        for region in regions(mask_logits):
            options = {"top_k": 17, "region": region}
            got = run_on(backend, instance_masks, class_logits, mask_logits, size, **options)
            expected = instance_masks(
                class_logits, mask_logits, size, backend="reference", **options
            )
            torch.testing.assert_close(got.scores, expected.scores, rtol=1e-5, atol=1e-30)
            gaps = expected.scores[0, :-1] - expected.scores[0, 1:]
            if (gaps <= 1e-5 * expected.scores[0, 1:]).logical_and(gaps > 0).any():
                continue  # scores that are equal but for rounding may change places
            assert torch.equal(got.labels, expected.labels)
            assert (got.masks != expected.masks).sum() <= 0.001 * got.masks.numel()
            same = (got.masks == expected.masks).all(-1).all(-1)
            assert torch.equal(got.boxes[same], expected.boxes[same])


def test_no_images():
    got = instance_masks(torch.empty(0, 3, 5), torch.empty(0, 3, 2, 2), (4, 6), top_k=7)
    assert [tuple(field.shape) for field in got] == [(0, 7), (0, 7), (0, 7, 4, 6), (0, 7, 4)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask_logits": torch.zeros(1, 3, 6, 7)}, ValueError, r"mask_logits: .*B=2"),
        ({"size": (0, 1)}, ValueError, "size: expected"),
        ({"top_k": 0}, ValueError, "top_k: .*got 0"),
        ({"thing_classes": [4]}, ValueError, r"thing_classes: .*\[0, 4\)"),
        ({"class_logits": torch.zeros(2, 0, 5)}, ValueError, "mask_logits: .*Q=0"),
        ({"region": torch.zeros(2, 2)}, ValueError, "region: "),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {
        "class_logits": torch.zeros(2, 3, 5),
        "mask_logits": torch.zeros(2, 3, 6, 7),
        "size": (8, 9),
        **change,
    }
    with pytest.raises(error, match=message):
        instance_masks(**arguments)


def test_no_queries_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="at least one query, got Q = 0"):
        instance_masks(torch.zeros(2, 0, 5), torch.zeros(2, 0, 6, 7), (8, 9))


@each_backend("instance_masks")
@pytest.mark.parametrize("things", [None, [0, 2]])
def test_opcheck(backend, things):
    device = device_of(backend)
    class_logits, mask_logits = (x.to(device) for x in random_predictions(2, 3, 4, 5, 6))
    region = torch.tensor([[4.5, 6.0], [5.0, 1.0]], device=device)
    op = torch.ops.maskformer_fast.instance_masks.default
    torch.library.opcheck(op, (class_logits, mask_logits, 9, 8, 7, things, region, backend))


def test_compiles_without_graph_breaks_at_two_sizes():
    compiled = torch.compile(instance_masks, fullgraph=True, backend="aot_eager")
    for h, size in ((5, (9, 11)), (7, (20, 13))):
        class_logits, mask_logits = random_predictions(2, 3, 4, h, 6)
        expected = instance_masks(class_logits, mask_logits, size, thing_classes=(2, 0))
        got = compiled(class_logits, mask_logits, size, thing_classes=(2, 0))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@each_backend("instance_masks")
def test_the_same_bits_on_every_run_and_in_any_order_of_threads(backend, monkeypatch):
    class_logits, mask_logits = random_predictions(2, 9, 4, 9, 19)
    runs = []
    for seed in (0, 1, 2):
        monkeypatch.setenv("MASKFORMER_EMULATION_SEED", str(seed))
        runs.append(run_on(backend, instance_masks, class_logits, mask_logits, (70, 301)))
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@each_backend("instance_masks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 600), (67, 33)], ids=str)
def test_each_mask_is_in_its_place(backend, dtype, size):
    class_logits, mask_logits = random_predictions(3, 7, 2, 6, 9, dtype=dtype)
    got = run_on(backend, instance_masks, class_logits, mask_logits, size, top_k=5)
    expected = instance_masks(class_logits, mask_logits, size, top_k=5, backend="reference")
    torch.testing.assert_close(got.scores, expected.scores, rtol=1e-5, atol=1e-30)
    assert torch.equal(got.labels, expected.labels)
    assert (got.masks != expected.masks).sum() <= 0.001 * got.masks.numel()
    assert torch.equal(got.boxes, expected.boxes)
