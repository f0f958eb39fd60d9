import math
import sys

import pytest
import torch
from backends import device_of, each_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from map_cases import (
    adversarial_maps,
    assert_equal_off_ties,
    exact_scores,
    interpolate,
    is_tie,
    random_predictions,
    run_on,
)
from op_cases import TOLERANCE

from maskformer_fast.ops.mask_logits import reference as mask_logits_reference
from maskformer_fast.ops.semantic_map import (
    ORDERS,
    reference,
    semantic_map,
    semantic_map_from_features,
)

each_order = pytest.mark.parametrize("order", ORDERS)
HALF = [torch.float16, torch.bfloat16]


def full_scores(class_logits, mask_logits, size, order):
    """[B, K, H, W] in float64, the formula typed plainly."""
    probs = class_logits.double().softmax(-1)[..., :-1]
    images = []
    for p, x in zip(probs, mask_logits, strict=True):
        if order == "maskformer":
            images.append(torch.einsum("qk,qyx->kyx", p, interpolate(x, size).sigmoid()))
        else:
            images.append(interpolate(torch.einsum("qk,qyx->kyx", p, x.double().sigmoid()), size))
    return torch.stack(images)


@each_order
def test_by_hand(order):
    # two queries, certain of classes 1 and 0; the third is certain of "no object"
    class_logits = torch.tensor([[[-99.0, 99, -99], [99.0, -99, -99], [-99.0, -99, 99]]])
    mask_logits = torch.tensor([[[[9.0, -9]], [[-9.0, 9]], [[99.0, 99]]]])
    labels, scores = semantic_map(
        class_logits, mask_logits, (1, 2), order=order, return_scores=True
    )
    assert labels.tolist() == [[[1, 0]]]
    assert labels.dtype == torch.int64
    torch.testing.assert_close(scores, torch.full((1, 1, 2), 9.0).sigmoid())


def test_orders_differ_where_the_sigmoid_comes_before_the_sampling():
    # between the two cells: sigmoid((40 - 8) / 2) = 1 against (1 + 0) / 2, and a rival with 0.7
    class_logits = torch.tensor([[[99.0, -99, -99], [-99.0, 99, -99]]])
    mask_logits = torch.tensor([[[[40.0, -8]], [[0.85, 0.85]]]])
    size = (1, 3)  # the middle pixel lies between the cells
    assert semantic_map(class_logits, mask_logits, size).tolist() == [[[0, 0, 1]]]
    transformers = semantic_map(class_logits, mask_logits, size, order="transformers")
    assert transformers.tolist() == [[[0, 1, 1]]]


@each_order
def test_ties_go_to_the_lowest_class(order):
    labels = semantic_map(torch.zeros(1, 2, 4), torch.randn(1, 2, 3, 3), (7, 7), order=order)
    assert not labels.any()


@each_order
@pytest.mark.parametrize(
    "shape", [(2, 5, 3, 4, 6, 15, 17), (1, 1, 1, 1, 1, 5, 3), (2, 7, 9, 17, 16, 70, 33)], ids=str
)
def test_equals_the_plain_formula(shape, order):
    *sizes, height, width = shape
    class_logits, mask_logits = random_predictions(*sizes)
    expected = full_scores(class_logits, mask_logits, (height, width), order)
    for dtype in (torch.float32, torch.float64):
        labels, scores = semantic_map(
            class_logits.to(dtype),
            mask_logits.to(dtype),
            (height, width),
            order=order,
            return_scores=True,
        )
        torch.testing.assert_close(scores.double(), expected.amax(1), rtol=2e-6, atol=2e-6)
        assert scores.dtype == dtype
        for got, image in zip(labels, expected, strict=True):
            assert_equal_off_ties(got, image.argmax(0), is_tie(image))


@each_order
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_inputs_are_computed_in_float32_also_under_autocast(dtype, order):
    class_logits, mask_logits = random_predictions(1, 4, 3, 5, 5, dtype=dtype)
    expected = semantic_map(class_logits.float(), mask_logits.float(), (11, 9), order=order)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = semantic_map(class_logits, mask_logits, (11, 9), order=order)
    assert torch.equal(got, expected)


@each_order
def test_region_of_whole_cells_equals_cropping(order):
    class_logits, mask_logits = random_predictions(2, 5, 4, 8, 9)
    region = torch.tensor([[6.0, 7.0], [8.0, 9.0]])
    got = semantic_map(class_logits, mask_logits, (21, 25), order=order, region=region)
    cropped = semantic_map(class_logits[:1], mask_logits[:1, :, :6, :7], (21, 25), order=order)
    whole = semantic_map(class_logits[1:], mask_logits[1:], (21, 25), order=order)
    assert torch.equal(got, torch.cat([cropped, whole]))


@each_order
def test_region_reads_no_cell_beyond_it(order):
    class_logits, mask_logits = random_predictions(1, 5, 4, 8, 9)
    region = torch.tensor([[5.5, 3.2]])
    expected = semantic_map(class_logits, mask_logits, (30, 20), order=order, region=region)
    mask_logits[:, :, 6:] = math.nan
    mask_logits[..., 4:] = math.nan
    got = semantic_map(class_logits, mask_logits, (30, 20), order=order, region=region)
    assert torch.equal(got, expected)


@each_order
def test_a_query_with_nan_counts_for_nothing(order):
    class_logits, mask_logits = random_predictions(1, 4, 3, 5, 5)
    expected = semantic_map(class_logits[:, 1:], mask_logits[:, 1:], (9, 9), order=order)
    class_logits[:, 0] = math.nan
    assert torch.equal(semantic_map(class_logits, mask_logits, (9, 9), order=order), expected)
    class_logits[:, 0] = 0
    mask_logits[:, 0] = math.nan
    assert torch.equal(semantic_map(class_logits, mask_logits, (9, 9), order=order), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_label_dtypes(dtype):
    class_logits, mask_logits = random_predictions(1, 4, 3, 5, 5)
    got = semantic_map(class_logits, mask_logits, (9, 9), dtype=dtype)
    assert got.dtype == dtype
    assert torch.equal(got.long(), semantic_map(class_logits, mask_logits, (9, 9)))


def test_largest_class_of_a_dtype():
    masks = torch.zeros(1, 1, 1, 1)
    class_logits = torch.zeros(1, 1, 257)
    class_logits[..., 255] = 9
    assert semantic_map(class_logits, masks, (1, 1), dtype=torch.uint8).item() == 255
    with pytest.raises(ValueError, match=r"dtype: expected one that holds K-1 = 256.*uint8"):
        semantic_map(torch.zeros(1, 1, 258), masks, (1, 1), dtype=torch.uint8)


@each_backend("semantic_map_from_features")
@each_order
@pytest.mark.parametrize("band_bytes", [1, 1500, 10**9])  # one row of cells, some rows, all
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 37])
def test_from_features_equals_the_two_steps(backend, order, band_bytes, dtype, rows, monkeypatch):
    monkeypatch.setattr(sys.modules[semantic_map.__module__], "BAND_BYTES", band_bytes)
    class_logits, _ = random_predictions(2, 4, 3, 1, 1, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 4, 8, generator=generator).to(dtype)
    features = torch.randn(2, 8, rows, 6, generator=generator).to(dtype)
    for region in (None, torch.tensor([[rows - 0.5, 6.0], [rows, 3.0]])):
        options = {"order": order, "region": region, "dtype": torch.int16, "return_scores": True}
        arguments = (class_logits, queries, features, (4 * rows + 3, 31))
        labels, scores = run_on(backend, semantic_map_from_features, *arguments, **options)
        assert labels.dtype == torch.int16
        logits = mask_logits_reference(queries, features, False)
        for image in range(2):
            extent = None if region is None else region[[image]]
            exact = exact_scores(
                class_logits[[image]], logits[[image]], labels.shape[1:], order, extent
            )
            tolerance = TOLERANCE[dtype]  # of the logits, which a product may round either way
            close = exact.amax(0) - exact.topk(2, 0).values[1] <= tolerance["rtol"]
            assert_equal_off_ties(labels[image], exact.argmax(0), close, share=0.1)
            torch.testing.assert_close(scores[image].double(), exact.amax(0), **tolerance)


def test_from_features_names_bad_input():
    arguments = (torch.zeros(2, 3, 5), torch.zeros(2, 3, 8), torch.zeros(2, 8, 6, 7), (8, 9))
    for place, value, error, message in (
        (1, torch.zeros(2, 4, 8), ValueError, r"mask_queries: .*Q=3"),
        (2, torch.zeros(2, 9, 6, 7), ValueError, r"pixel_features: .*C=8"),
        (2, torch.zeros(2, 8, 6, 0), ValueError, r"pixel_features: .*>= 1"),
        (2, torch.zeros(2, 8, 6, 7).half(), TypeError, r"pixel_features: .*float16"),
        (3, (8, 0), ValueError, "size: expected"),
    ):
        changed = [*arguments[:place], value, *arguments[place + 1 :]]
        with pytest.raises(error, match=message):
            semantic_map_from_features(*changed)


def test_no_images():
    labels, scores = semantic_map(
        torch.empty(0, 3, 5), torch.empty(0, 3, 2, 2), (4, 6), return_scores=True
    )
    assert labels.shape == scores.shape == (0, 4, 6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"class_logits": None}, TypeError, "class_logits: expected a torch.Tensor"),
        ({"class_logits": torch.zeros(2, 3)}, ValueError, r"class_logits: .*got \(2, 3\)"),
        ({"class_logits": torch.zeros(2, 3, 1)}, ValueError, "class_logits: .*K.1 = 1"),
        ({"class_logits": torch.zeros(2, 3, 5, dtype=torch.int32)}, TypeError, "class_logits"),
        ({"mask_logits": torch.zeros(2, 4, 6, 7)}, ValueError, r"mask_logits: .*Q=3"),
        ({"mask_logits": torch.zeros(2, 3, 0, 7)}, ValueError, r"mask_logits: .*>= 1"),
        ({"mask_logits": torch.zeros(2, 3, 6, 7).double()}, TypeError, "mask_logits: .*float64"),
        ({"size": (0, 4)}, ValueError, "size: expected"),
        ({"size": (3,)}, ValueError, "size: expected"),
        ({"order": "detectron2"}, ValueError, "order: .*'detectron2'"),
        ({"dtype": torch.float32}, TypeError, "dtype: .*float32"),
        ({"region": torch.zeros(2, 3)}, ValueError, "region: "),
        ({"region": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, "region: .*int64"),
        ({"region": torch.tensor([[6.0, 7], [0, 7]])}, ValueError, r"region: .*\(0, 6\]"),
        ({"region": torch.tensor([[6.0, 7], [6, 7.5]])}, ValueError, "region: .*7.5"),
        ({"region": torch.tensor([[6.0, 7], [6, math.nan]])}, ValueError, "region: .*nan"),
        ({"backend": "gpu"}, ValueError, "backend: "),
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
        semantic_map(**arguments)


def test_no_queries_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="at least one query, got Q = 0"):
        semantic_map(torch.zeros(2, 0, 5), torch.zeros(2, 0, 6, 7), (8, 9))


@each_backend("semantic_map")
@each_order
def test_classes_that_tie_everywhere_give_the_lowest(backend, order):
    class_logits = torch.tensor([[[-3.0, 1, 1, 1, -9]]]).expand(1, 7, 5)
    for name in ("smooth", "constant", "checkerboard"):
        masks = adversarial_maps(name, 7)
        got = run_on(backend, semantic_map, class_logits, masks, (40, 90), order=order)
        assert (got == 1).all()


@each_backend("semantic_map")
@each_order
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_and_strided_inputs(backend, order, dtype):
    class_logits, mask_logits = random_predictions(2, 7, 9, 11, 300, dtype=dtype)
    mask_logits = mask_logits.mT.contiguous().mT
    got = run_on(backend, semantic_map, class_logits, mask_logits, (45, 900), order=order)
    for image in range(2):
        exact = exact_scores(class_logits[[image]], mask_logits[[image]], (45, 900), order, None)
        assert_equal_off_ties(got[image], exact.argmax(0), is_tie(exact))


@each_backend("semantic_map")
def test_opcheck(backend):
    device = device_of(backend)
    class_logits, mask_logits = (x.to(device) for x in random_predictions(2, 3, 4, 5, 6))
    op = torch.ops.maskformer_fast.semantic_map.default
    for region, scores in ((None, True), (torch.tensor([[4.5, 6], [5, 1]], device=device), False)):
        arguments = (class_logits, mask_logits, 9, 8, "maskformer", region, torch.int16, scores)
        torch.library.opcheck(op, (*arguments, backend))
        features = (torch.randn(2, 3, 8, device=device), torch.randn(2, 8, 5, 6, device=device))
        op_of_features = torch.ops.maskformer_fast.semantic_map_from_features.default
        torch.library.opcheck(op_of_features, (class_logits, *features, *arguments[2:], backend))


def test_compiles_without_graph_breaks_at_two_sizes():
    compiled = torch.compile(semantic_map, fullgraph=True, backend="aot_eager")
    for h, size in ((5, (9, 11)), (7, (20, 13))):
        class_logits, mask_logits = random_predictions(2, 3, 4, h, 6)
        region = torch.tensor([[4.5, 6.0], [5.0, 1.0]])
        got = compiled(class_logits, mask_logits, size, region=region)
        assert torch.equal(got, semantic_map(class_logits, mask_logits, size, region=region))


def test_gives_no_gradient_and_leaves_its_inputs():
    class_logits, mask_logits = random_predictions(1, 3, 4, 5, 6)
    before = mask_logits.clone()
    _, scores = semantic_map(class_logits.requires_grad_(), mask_logits, (8, 8), return_scores=True)
    assert not scores.requires_grad
    assert torch.equal(mask_logits, before)


@given(
    sizes=st.tuples(*[st.integers(1, n) for n in (2, 4, 4, 5, 5)]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 12)),
    order=st.sampled_from(ORDERS),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_small_shapes(sizes, size, order, seed):
    class_logits, mask_logits = random_predictions(*sizes, seed=seed)
    arguments = (class_logits, mask_logits, *size, order, None, torch.int64, True)
    labels, scores = reference(*arguments)
    again = reference(*arguments)
    assert torch.equal(labels, again[0])
    assert torch.equal(scores, again[1])
    for got, image in zip(labels, full_scores(class_logits, mask_logits, size, order), strict=True):
        assert_equal_off_ties(got, image.argmax(0), is_tie(image), share=1)
