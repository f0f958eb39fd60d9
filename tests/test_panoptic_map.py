import math

import pytest
import torch
from backends import device_of, each_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from map_cases import (
    assert_equal_off_ties,
    class_logits_of,
    interpolate,
    is_tie,
    mask_logits_of,
    random_predictions,
)

from maskformer_fast.ops.panoptic_map import DIALECTS, PanopticMap, panoptic_map

each_dialect = pytest.mark.parametrize("dialect", DIALECTS)
NO_OBJECT = 3  # of the hand-made cases: classes 0, 1 are things, 2 is stuff


def merge(queries, masks, **options):
    """panoptic_map of one row of pixels; a query is (label, score), a mask its probabilities."""
    options = {"score_threshold": 0.5, "thing_classes": [0, 1], **options}
    class_logits = class_logits_of(*queries, num_classes=3)
    mask_logits = mask_logits_of(*masks)
    return panoptic_map(class_logits, mask_logits, mask_logits.shape[-2:], **options)


@each_dialect
def test_things_have_ids_of_their_own_and_stuff_shares_one(dialect):
    got = merge(
        [(0, 0.9), (2, 0.9), (0, 0.9), (2, 0.9), (1, 0.9)],
        [
            [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
            [0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
            [0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1],
            [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1],
            [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9],
        ],
        dialect=dialect,
    )
    assert got.segments.tolist() == [[[1, 1, 2, 3, 3, 3, 2, 4, 4]]]
    assert got.segment_of_query.tolist() == [[1, 2, 3, 2, 4]]
    assert got.area.tolist() == [[2, 1, 3, 1, 2]]
    assert got.label.tolist() == [[0, 2, 0, 2, 1]]
    torch.testing.assert_close(got.score, torch.full((1, 5), 0.9))
    dtypes = [field.dtype for field in got]
    assert dtypes == [torch.int32, torch.int32, torch.int32, torch.float32, torch.int64]


def test_a_dropped_stuff_query_does_not_give_its_class_an_id():
    got = merge(
        [(2, 0.6), (0, 0.9), (2, 0.8)],
        [[0.9, 0.9, 0.9, 0.1], [0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.1, 0.9]],
    )
    assert got.segment_of_query.tolist() == [[0, 1, 2]]  # query 0 won 1 of its 3 pixels
    assert got.segments.tolist() == [[[1, 1, 0, 2]]]
    assert got.area.tolist() == [[0, 2, 1]]


def test_dropped_pixels_are_void_and_not_the_runner_up():
    got = merge([(0, 0.9), (1, 0.8)], [[0.9, 0.9, 0.2], [0.8, 0.8, 0.8]])
    assert got.segments.tolist() == [[[1, 1, 0]]]
    assert got.segment_of_query.tolist() == [[1, 0]]


def test_a_ratio_at_the_threshold_is_kept_and_by_the_strict_test_of_transformers_dropped():
    masks = [[0.9, 0.9, 0.1], [0.1, 0.8, 0.8]]  # query 1 wins one of its two pixels
    options = {"overlap_threshold": 0.5}
    queries = [(0, 0.95), (1, 0.9)]
    assert merge(queries, masks, **options).segments.tolist() == [[[1, 1, 2]]]
    strict = merge(queries, masks, dialect="transformers", **options)
    assert strict.segments.tolist() == [[[1, 1, 0]]]


@each_dialect
def test_ties_go_to_the_lower_query(dialect):
    got = merge([(1, 0.9), (0, 0.9), (0, 0.9)], [[0.1, 0.9], [0.9, 0.1], [0.9, 0.1]])
    assert got.segments.tolist() == [[[2, 1]]]
    assert got.segment_of_query.tolist() == [[1, 2, 0]]


@each_dialect
def test_a_score_at_the_threshold_is_not_kept(dialect):
    class_logits = torch.tensor([[[0.0, 0.0, -math.inf]]])  # 0.5 exactly, and the lower label
    arguments = (class_logits, torch.full((1, 1, 2, 2), 9.0), (2, 2))
    at = panoptic_map(*arguments, thing_classes=[0], score_threshold=0.5, dialect=dialect)
    assert not at.segments.any()
    assert (at.score.item(), at.label.item()) == (0.5, 0)
    below = panoptic_map(
        *arguments, thing_classes=[0], score_threshold=0.49, mask_threshold=0.4, dialect=dialect
    )
    assert (below.segments == 1).all()


@each_dialect
def test_no_object_is_never_kept(dialect):
    got = merge([(NO_OBJECT, 0.99), (0, 0.6)], [[0.99, 0.99], [0.9, 0.9]], dialect=dialect)
    assert got.segments.tolist() == [[[1, 1]]]
    assert got.segment_of_query.tolist() == [[0, 1]]
    assert got.label.tolist() == [[NO_OBJECT, 0]]


@each_dialect
def test_nothing_kept_is_all_void(dialect):
    got = merge([(NO_OBJECT, 0.99), (0, 0.4)], [[0.9, 0.9], [0.9, 0.9]], dialect=dialect)
    assert not got.segments.any()
    assert not got.segment_of_query.any()
    assert not got.area.any()
    torch.testing.assert_close(got.score, torch.tensor([[0.99, 0.4]]))


@pytest.mark.parametrize("dialect", ["maskformer", "mask2former"])
def test_a_probability_at_the_mask_threshold_belongs_to_the_mask(dialect):
    got = merge([(0, 0.9)], [[0.5, 0.4]], dialect=dialect)
    assert got.segments.tolist() == [[[1, 1 if dialect == "maskformer" else 0]]]
    assert not merge([(0, 0.9)], [[0.49, 0.4]], dialect=dialect).segments.any()


def test_mask2former_leaves_won_pixels_outside_the_mask_void():
    masks = [[0.9, 0.9, 0.2, 0.2]]
    assert merge([(0, 0.9)], masks).segments.tolist() == [[[1, 1, 1, 1]]]
    got = merge([(0, 0.9)], masks, dialect="mask2former")
    assert got.segments.tolist() == [[[1, 1, 0, 0]]]
    assert got.area.tolist() == [[2]]


def test_mask2former_drops_a_query_that_would_write_nothing():
    masks = [[0.9, 0.1], [0.6, 0.4]]  # query 1 wins the pixel that is outside its mask
    queries = [(0, 0.9), (1, 0.9)]
    assert merge(queries, masks).segments.tolist() == [[[1, 2]]]
    got = merge(queries, masks, dialect="mask2former")
    assert got.segments.tolist() == [[[1, 0]]]
    assert got.segment_of_query.tolist() == [[1, 0]]


def test_transformers_weighs_the_original_area_by_the_score():
    masks = [[0.9, 0.7, 0.7]]  # times 0.6: one pixel with >= 0.5, and three are won
    assert not merge([(0, 0.6)], masks, overlap_threshold=2).segments.any()
    got = merge([(0, 0.6)], masks, overlap_threshold=2, dialect="transformers")
    assert got.segments.tolist() == [[[1, 1, 1]]]


def test_transformers_samples_after_the_sigmoid():
    class_logits = class_logits_of((0, 0.9), (1, 0.9), num_classes=3)
    mask_logits = torch.tensor([[[[40.0, -8]], [[0.85, 0.85]]]])
    options = {"thing_classes": [0, 1], "score_threshold": 0.5, "overlap_threshold": 0.1}
    size = (1, 3)  # the middle pixel: sigmoid(16) against (1 + 0) / 2, and a rival with 0.7
    assert panoptic_map(class_logits, mask_logits, size, **options).segments.tolist() == [
        [[1, 1, 2]]
    ]
    after = panoptic_map(class_logits, mask_logits, size, dialect="transformers", **options)
    assert after.segments.tolist() == [[[1, 2, 2]]]


def plain_rules(class_logits, mask_logits, size, things, score, mask, overlap, dialect):
    """Section by section, one image in Python: segments [H, W], ids and areas per query."""
    scores, labels = class_logits.double().softmax(-1).max(-1)
    after = dialect == "transformers"
    x = mask_logits.double()
    probs = interpolate(x.sigmoid(), size) if after else interpolate(x, size).sigmoid()
    kept = [
        q
        for q, label in enumerate(labels)
        if label < class_logits.shape[-1] - 1 and scores[q] > score
    ]
    segments = torch.zeros(size, dtype=torch.int32)
    ids, areas = [0] * len(labels), [0] * len(labels)
    if not kept:
        return segments, ids, areas
    winner = torch.tensor(kept)[(scores[kept, None, None] * probs[kept]).argmax(0)]
    fused, latest = {}, 0
    for q in kept:
        won = winner == q
        own = (scores[q] * probs[q] if after else probs[q]) >= mask
        write = won & own if dialect == "mask2former" else won
        if not (won.any() and own.any() and write.any()):
            continue
        ratio = int(won.sum()) / int(own.sum())
        if ratio <= overlap if after else ratio < overlap:
            continue
        label = int(labels[q])
        if label not in fused:
            latest += 1
        ids[q] = fused.get(label, latest)
        if label not in things:
            fused[label] = ids[q]
        segments[write] = ids[q]
        areas[q] = int(write.sum())
    return segments, ids, areas


@each_dialect
@given(
    sizes=st.tuples(*[st.integers(1, n) for n in (2, 8, 4, 5, 5)]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 12)),
    things=st.sets(st.integers(0, 3)),
    overlap=st.sampled_from([0.0, 0.3, 0.6]),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_equals_the_plain_rules(dialect, sizes, size, things, overlap, seed):
    class_logits, mask_logits = random_predictions(*sizes, dtype=torch.float64, seed=seed)
    things = {label for label in things if label < sizes[2]}
    got = panoptic_map(
        class_logits,
        mask_logits,
        size,
        thing_classes=things,
        score_threshold=0.3,
        mask_threshold=0.4,
        overlap_threshold=overlap,
        dialect=dialect,
    )
    for image in range(sizes[0]):
        segments, ids, areas = plain_rules(
            class_logits[image], mask_logits[image], size, things, 0.3, 0.4, overlap, dialect
        )
        assert torch.equal(got.segments[image], segments)
        assert got.segment_of_query[image].tolist() == ids
        assert got.area[image].tolist() == areas


@each_dialect
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_float32_differs_from_float64_at_ties_only(dialect, dtype):
    class_logits, mask_logits = random_predictions(2, 12, 5, 16, 17, dtype=dtype)
    options = {"thing_classes": [0, 1], "score_threshold": 0.2, "overlap_threshold": 0.3}
    size = (67, 70)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = panoptic_map(class_logits, mask_logits, size, dialect=dialect, **options)
    exact = panoptic_map(
        class_logits.double(), mask_logits.double(), size, dialect=dialect, **options
    )
    assert torch.equal(got.segment_of_query, exact.segment_of_query)
    assert torch.equal(got.label, exact.label)
    torch.testing.assert_close(got.score.double(), exact.score, rtol=1e-6, atol=0)
    for image in range(2):
        probs = interpolate(mask_logits[image], size).sigmoid()
        if dialect == "transformers":
            probs = interpolate(mask_logits[image].double().sigmoid(), size)
        kept = (exact.label[image] < 5) & (exact.score[image] > 0.2)
        weighted = (exact.score[image, :, None, None] * probs)[kept]
        tie = is_tie(weighted) | ((probs - 0.5).abs() < 1e-5).any(0)
        assert_equal_off_ties(got.segments[image], exact.segments[image], tie)


@each_dialect
def test_areas_are_the_pixels_of_the_map(dialect):
    class_logits, mask_logits = random_predictions(2, 20, 5, 9, 9)
    got = panoptic_map(
        class_logits,
        mask_logits,
        (30, 31),
        thing_classes=[1, 2],
        score_threshold=0.1,
        overlap_threshold=0.1,
        dialect=dialect,
    )
    for segments, ids, area in zip(got.segments, got.segment_of_query, got.area, strict=True):
        assert ids.max() > 3
        for segment in range(1, int(ids.max()) + 1):
            assert (segments == segment).sum() == area[ids == segment].sum() > 0
        assert not area[ids == 0].any()


@each_dialect
def test_region_equals_cropping_and_reads_no_cell_beyond_it(dialect):
    class_logits, mask_logits = random_predictions(2, 6, 4, 8, 9)
    options = {"thing_classes": [0], "score_threshold": 0.1, "dialect": dialect}
    size = (40, 25)
    fractional = torch.tensor([[5.5, 3.2], [6.0, 3.9]])
    expected = panoptic_map(class_logits, mask_logits, size, region=fractional, **options)
    mask_logits[:, :, 6:] = math.nan
    mask_logits[..., 4:] = math.nan
    got = panoptic_map(class_logits, mask_logits, size, region=fractional, **options)
    whole = panoptic_map(
        class_logits, mask_logits, size, region=torch.tensor([[6.0, 4.0]] * 2), **options
    )
    cropped = panoptic_map(class_logits, mask_logits[:, :, :6, :4], size, **options)
    for field in range(5):
        assert torch.equal(got[field], expected[field])
        assert torch.equal(whole[field], cropped[field])
    assert cropped.segments.any()


@each_dialect
def test_nan_wins_nothing_that_another_query_claims(dialect):
    class_logits = class_logits_of((0, 0.9), (1, 0.9), (0, 0.9), num_classes=3)
    mask_logits = mask_logits_of([0.9, 0.9], [0.8, 0.8], [0.9, 0.9])
    class_logits[0, 0] = math.nan
    mask_logits[0, 2] = math.nan
    got = panoptic_map(class_logits, mask_logits, (1, 2), thing_classes=[0, 1], dialect=dialect)
    assert got.segments.tolist() == [[[1, 1]]]
    assert got.segment_of_query.tolist() == [[0, 1, 0]]
    assert got.score[0, 0] == 0


def test_no_images_and_no_things():
    got = panoptic_map(torch.empty(0, 3, 5), torch.empty(0, 3, 2, 2), (4, 6), thing_classes=[])
    assert isinstance(got, PanopticMap)
    assert [tuple(field.shape) for field in got] == [(0, 4, 6), (0, 3), (0, 3), (0, 3), (0, 3)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask_logits": torch.zeros(2, 4, 6, 7)}, ValueError, r"mask_logits: .*Q=3"),
        ({"class_logits": torch.zeros(2, 3, 5).half()}, TypeError, "mask_logits: .*float16"),
        ({"size": (5, -1)}, ValueError, "size: expected"),
        ({"thing_classes": [0, 4]}, ValueError, r"thing_classes: .*\[0, 4\)"),
        ({"thing_classes": [-1]}, ValueError, "thing_classes: "),
        ({"score_threshold": -0.1}, ValueError, "score_threshold: "),
        ({"mask_threshold": math.nan}, ValueError, "mask_threshold: "),
        ({"overlap_threshold": -1}, ValueError, "overlap_threshold: "),
        ({"dialect": "detectron2"}, ValueError, "dialect: .*'detectron2'"),
        ({"region": torch.tensor([[6.0, 8], [6, 7]])}, ValueError, "region: "),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {
        "class_logits": torch.zeros(2, 3, 5),
        "mask_logits": torch.zeros(2, 3, 6, 7),
        "size": (8, 9),
        "thing_classes": [0],
        **change,
    }
    with pytest.raises(error, match=message):
        panoptic_map(**arguments)


def test_no_queries_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="at least one query, got Q = 0"):
        panoptic_map(torch.zeros(2, 0, 5), torch.zeros(2, 0, 6, 7), (8, 9), thing_classes=[])


@each_backend("panoptic_map")
@each_dialect
def test_opcheck(backend, dialect):
    device = device_of(backend)
    class_logits, mask_logits = (x.to(device) for x in random_predictions(2, 3, 4, 5, 6))
    arguments = (class_logits, mask_logits, 9, 8, [0, 2], 0.3, 0.5, 0.5, dialect)
    region = torch.tensor([[4.5, 6.0], [5.0, 1.0]], device=device)
    op = torch.ops.maskformer_fast.panoptic_map.default
    torch.library.opcheck(op, (*arguments, region, backend))


def test_compiles_without_graph_breaks_at_two_sizes():
    compiled = torch.compile(panoptic_map, fullgraph=True, backend="aot_eager")
    for h, size in ((5, (9, 11)), (7, (20, 13))):
        class_logits, mask_logits = random_predictions(2, 3, 4, h, 6)
        options = {"thing_classes": (2, 0), "score_threshold": 0.2}
        expected = panoptic_map(class_logits, mask_logits, size, **options)
        got = compiled(class_logits, mask_logits, size, **options)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
