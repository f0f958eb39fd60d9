"""More than 2^31 elements, whose offsets 32 bits cannot hold: 3 to 11 GB and a minute each, run one
at a time where `-m large` asks for them. linear_assignment's is with its other tests."""

from __future__ import annotations

import pytest
import torch
from backends import device_of, each_backend
from torch import Tensor, tensor

from maskformer_fast import Targets, ops

pytestmark = pytest.mark.large
LIMIT = 2**31
QUERIES = 100
SIDE = 4650  # of a grid: QUERIES of them are past the limit
LONG_SIDE = 46350  # of a map that is past the limit alone
NO = -8.0  # a logit that is nearly certain
YES = 8.0
each_order = pytest.mark.parametrize("order", ["maskformer", "transformers"])


@pytest.fixture(autouse=True)
def _only_kernels(backend: str) -> None:
    if backend == "reference":
        pytest.skip("reference: holds several times as much, as float32")


def large_logits(*sizes: int, backend: str) -> Tensor:
    """[..., h, w] float16: the last grid is noise, the others are -4."""
    logits = torch.full(sizes, -4, dtype=torch.float16, device=device_of(backend))
    noise = torch.randn(sizes[-2:], generator=torch.Generator().manual_seed(0))
    logits.flatten(0, -3)[-1] = noise.to(logits)
    assert logits.numel() > LIMIT
    return logits


def own_classes(backend: str) -> Tensor:
    """[1, Q, Q+1] float16: query q is of class q."""
    logits = torch.full((1, QUERIES, QUERIES + 1), NO)
    logits[0, range(QUERIES), range(QUERIES)] = YES
    return logits.to(device_of(backend), torch.float16)


def two_halves(side: int, backend: str) -> Targets:
    """One image of two targets: the upper half and the lower."""
    device = device_of(backend)
    segments = torch.zeros(1, side, side, dtype=torch.int16, device=device)
    segments[:, side // 2 :] = 1
    counts = tensor([2], dtype=torch.int32, device=device)
    return Targets(tensor([[0, 1]], device=device), counts, segments=segments)


def half_masks(backend: str) -> Tensor:
    """[1, 2, 2, 1] float32: the first query sees the upper half, the second the lower."""
    return tensor([[[[YES], [NO]], [[NO], [YES]]]], device=device_of(backend))


def many_features(backend: str) -> tuple[Tensor, Tensor]:
    """Of two queries: the first sees the upper half, the second the lower."""
    channels, side = 256, 2900
    features = torch.zeros(1, channels, side, side, dtype=torch.float16, device=device_of(backend))
    assert features.numel() > LIMIT
    features[0, -1] = -1
    features[0, -1, : side // 2] = 1
    return features, torch.tensor([YES, NO]).to(features)[None, :, None].repeat(1, 1, channels)


@each_backend("mask_logits")
def test_mask_probs_and_gradients(backend: str) -> None:
    features = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float16, device=device_of(backend))
    features[..., -1] = 1
    queries = torch.linspace(-4, 4, QUERIES).to(features)[None, :, None]
    leaves = [t.requires_grad_() for t in (queries, features)]
    probs = ops.mask_probs(*leaves, backend=backend)
    assert probs.numel() > LIMIT
    expected = queries[0].float().sigmoid().expand(QUERIES, SIDE)
    torch.testing.assert_close(probs[0, ..., -1].float(), expected, rtol=2e-3, atol=0)
    assert (probs[0, -1, :, :-1] == 0.5).all()
    chosen = torch.zeros_like(probs)
    chosen[0, -1, -1, -1] = 1
    of_queries, of_features = torch.autograd.grad(probs, leaves, chosen)
    slope = (expected[-1, 0] * (1 - expected[-1, 0])).item()
    assert of_queries.count_nonzero() == of_features.count_nonzero() == 1
    assert of_queries[0, -1].item() == pytest.approx(slope, rel=2e-3)
    assert of_features[0, 0, -1, -1].item() == pytest.approx(4 * slope, rel=2e-3)


@each_backend("matching_cost_from_logits")
def test_matching_cost_of_many_logits(backend: str) -> None:
    logits, targets = large_logits(1, QUERIES, SIDE, SIDE, backend=backend), two_halves(16, backend)
    classes = own_classes(backend)
    cost = ops.matching_cost_from_logits(classes, logits, targets, backend=backend)
    alone = ops.matching_cost_from_logits(
        classes[:, -2:], logits[:, -2:].clone(), targets, backend=backend
    )
    torch.testing.assert_close(cost[..., -2:], alone)
    assert (alone[..., 0] != alone[..., 1]).all()


@each_backend("matching_cost")
def test_matching_cost_of_many_features(backend: str) -> None:
    features, queries = many_features(backend)
    queries = queries[None, :, :1]
    classes, targets = own_classes(backend)[None, :, :1], two_halves(16, backend)
    cost = ops.matching_cost(classes, queries, features, targets, backend=backend)
    fewer = features[:, -1:].clone()
    alone = ops.matching_cost(classes, queries[..., -1:], fewer, targets, backend=backend)
    torch.testing.assert_close(cost, alone)
    assert cost[0, 0, 0] < cost[0, 0, 1]


@each_backend("matching_cost_from_logits")
def test_matching_cost_of_many_pixels(backend: str) -> None:
    targets, classes = two_halves(LONG_SIDE, backend), own_classes(backend)[:, :2].float()
    assert targets.pixels.numel() > LIMIT
    masks = half_masks(backend)
    cost = ops.matching_cost_from_logits(classes, masks, targets, backend=backend)
    small = ops.matching_cost_from_logits(classes, masks, two_halves(2, backend), backend=backend)
    torch.testing.assert_close(cost, small)


@each_backend("mask_loss")
def test_mask_loss_of_many_logits(backend: str) -> None:
    logits = large_logits(850, QUERIES, 160, 160, backend=backend)
    one = two_halves(16, backend)
    labels, counts = torch.zeros(1, QUERIES).to(one.labels), torch.full_like(one.num_targets, 100)
    targets = Targets(labels, counts, segments=one.segments)
    losses = ops.mask_loss(logits, targets, backend=backend)
    alone = ops.mask_loss(logits[-1:].clone(), targets, backend=backend)
    # In Triton, many rows are summed in longer runs than one.
    tolerance = {} if backend == "triton" else {"rtol": 0, "atol": 0}
    for found, expected in zip(losses, alone, strict=True):
        torch.testing.assert_close(found[-1:], expected, **tolerance)
        torch.testing.assert_close(found[-2, :-1], expected[0, :-1], **tolerance)
        assert expected[0, -1] != expected[0, -2]


@each_backend("mask_loss")
def test_mask_loss_of_many_pixels(backend: str) -> None:
    targets = two_halves(LONG_SIDE, backend)
    assert targets.pixels.numel() > LIMIT
    losses = ops.mask_loss(half_masks(backend), targets, backend=backend)
    small = ops.mask_loss(half_masks(backend), two_halves(2000, backend), backend=backend)
    for found, expected in zip(losses, small, strict=True):  # means over fine pixels and finer
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@each_backend("semantic_map")
@each_order
def test_semantic_map_of_many_logits(backend: str, order: str) -> None:
    logits, classes = large_logits(1, QUERIES, SIDE, SIDE, backend=backend), own_classes(backend)
    options = {"order": order, "backend": backend}
    last = ops.semantic_map(classes, logits, (64, 64), **options) == QUERIES - 1
    alone = ops.semantic_map(classes[:, -2:], logits[:, -2:].clone(), (64, 64), **options)
    assert torch.equal(last, alone == QUERIES - 1) and last.any()


@each_backend("semantic_map")
@each_order
def test_semantic_map_of_many_pixels(backend: str, order: str) -> None:
    classes, size = own_classes(backend)[:, :2].float(), (LONG_SIDE, LONG_SIDE)
    options = {"order": order, "dtype": torch.uint8, "return_scores": True, "backend": backend}
    labels, scores = ops.semantic_map(classes, half_masks(backend), size, **options)
    assert labels.numel() > LIMIT
    assert not labels[:, : LONG_SIDE // 2].any() and labels[:, LONG_SIDE // 2 :].all()
    certain = tensor(YES).sigmoid().expand(LONG_SIDE).to(scores)
    for row in (0, -1):
        torch.testing.assert_close(scores[0, row], certain, rtol=1e-4, atol=0)


@each_backend("semantic_map_from_features")
@each_order
def test_semantic_map_of_many_features(backend: str, order: str) -> None:
    features, queries = many_features(backend)
    classes, options = own_classes(backend)[:, :2], {"order": order, "backend": backend}
    labels = ops.semantic_map_from_features(classes, queries, features, (64, 64), **options)
    assert not labels[:, :32].any() and labels[:, 32:].all()


@each_backend("panoptic_map")
def test_panoptic_map_of_many_logits(backend: str) -> None:
    logits, classes = large_logits(1, QUERIES, SIDE, SIDE, backend=backend), own_classes(backend)
    options = {"thing_classes": range(QUERIES), "overlap_threshold": 0.0, "backend": backend}
    found = ops.panoptic_map(classes, logits, (64, 64), **options)
    alone = ops.panoptic_map(classes[:, -2:], logits[:, -2:].clone(), (64, 64), **options)
    assert torch.equal(found.segments, alone.segments) and found.segments.any()
    assert found.area[0, -1] == alone.area[0, -1] > 0


@each_backend("panoptic_map")
def test_panoptic_map_of_many_pixels(backend: str) -> None:
    side = 33000  # of two images: a query's area is counted in 32 bits
    classes = own_classes(backend)[:, :2].float().expand(2, -1, -1)
    masks = half_masks(backend).expand(2, -1, -1, -1)
    found = ops.panoptic_map(classes, masks, (side, side), thing_classes=[0, 1], backend=backend)
    assert found.segments.numel() > LIMIT
    assert (found.segments[:, : side // 2] == 1).all()
    assert (found.segments[:, side // 2 :] == 2).all()
    assert (found.area == side * side // 2).all()


@each_backend("instance_masks")
def test_instance_masks_of_many_logits(backend: str) -> None:
    logits, classes = large_logits(1, QUERIES, SIDE, SIDE, backend=backend), own_classes(backend)
    options = {"top_k": QUERIES, "backend": backend}
    found = ops.instance_masks(classes, logits, (64, 64), **options)
    alone = ops.instance_masks(classes[:, -1:], logits[:, -1:].clone(), (64, 64), **options)
    for got, expected in zip(found, alone, strict=True):
        assert torch.equal(got[0, 0], expected[0, 0])
    assert found.labels[0, 0] == QUERIES - 1 and found.masks[0, 0].any()


@each_backend("instance_masks")
def test_instance_masks_of_many_pixels(backend: str) -> None:
    masks = half_masks(backend).repeat(1, QUERIES // 2, 1, 1)
    classes = own_classes(backend).float()
    found = ops.instance_masks(classes, masks, (SIDE, SIDE), top_k=QUERIES, backend=backend)
    assert found.masks.numel() > LIMIT
    for rank in (0, -2, -1):
        mask, box = found.masks[0, rank], found.boxes[0, rank]
        first = SIDE // 2 * (int(found.labels[0, rank]) % 2)
        assert mask[first : first + SIDE // 2].all() and mask.sum() == SIDE * SIDE // 2
        assert box.tolist() == [0, first, SIDE, first + SIDE // 2]
