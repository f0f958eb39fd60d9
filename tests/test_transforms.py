"""Transforms keep image, segments and labels together; collate pads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskformer_fast.data.sample import PanopticSample
from maskformer_fast.data.transforms import (
    ColorJitter,
    Compose,
    RandomCrop,
    RandomHorizontalFlip,
    RandomScale,
    ResizeShortSide,
    collate,
    drop_absent_targets,
    resize,
)
from maskformer_fast.images import normalize


def sample_of(segments, labels=None):
    """A sample whose picture shows 50 * (target + 1) in every channel."""
    segments = torch.as_tensor(segments, dtype=torch.int16)
    count = int(segments.max()) + 1
    return PanopticSample(
        image=(50 * (segments + 1)).to(torch.uint8).expand(3, -1, -1),
        segments=segments,
        labels=torch.arange(10, 10 + count) if labels is None else torch.tensor(labels),
        image_id=1,
        file_name="a.png",
    )


def random_sample(height, width, count=5):
    return sample_of(torch.randint(-1, count, (height, width)), labels=list(range(count)))


def test_flip_mirrors_both():
    flipped = RandomHorizontalFlip(1.0)(sample_of([[0, 1, -1]]))
    assert flipped.segments.tolist() == [[-1, 1, 0]]
    assert flipped.image[0].tolist() == [[0, 100, 50]]
    assert RandomHorizontalFlip(0.0)(sample_of([[0, 1, -1]])).segments.tolist() == [[0, 1, -1]]


def test_absent_targets_are_dropped_and_the_others_renumbered():
    kept = drop_absent_targets(sample_of([[2, -1, 0]], labels=[7, 8, 9, 6]))
    assert kept.segments.tolist() == [[1, -1, 0]]
    assert kept.segments.dtype == torch.int16
    assert kept.labels.tolist() == [7, 9]


def test_crop_drops_targets_outside():
    sample = sample_of([[0, 0, 1, 1, 2, 2]] * 3)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        crop = RandomCrop((2, 2))(sample)
        seen.add(tuple(crop.labels.tolist()))
        assert crop.segments.unique().tolist() == list(range(len(crop.labels)))
        assert (crop.labels[crop.segments.long()] - 9).mul(50).equal(crop.image[0].long())
    assert {(10,), (11,), (12,), (10, 11), (11, 12)} == seen


def test_crop_without_a_target_has_none():
    crop = RandomCrop((1, 1))(sample_of([[-1, -1]], labels=[3]))
    assert crop.labels.shape == (0,)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 24), st.integers(1, 24))
def test_scaled_crop_never_keeps_an_empty_target(height, width, rows, columns):
    transform = Compose(
        RandomHorizontalFlip(), RandomScale(16), RandomCrop((rows, columns)), ColorJitter()
    )
    result = transform(random_sample(height, width))
    assert result.image.shape[1:] == result.segments.shape
    assert result.image.dtype == torch.uint8
    assert result.segments.shape[0] <= rows and result.segments.shape[1] <= columns
    present = result.segments.unique()
    assert present[present >= 0].tolist() == list(range(len(result.labels)))


def test_resize_keeps_labels_and_colours_of_large_areas():
    segments = torch.zeros(20, 40)
    segments[:, 20:] = 1
    half = resize(sample_of(segments), 0.5)
    assert half.segments.tolist() == [[0] * 10 + [1] * 10] * 10
    assert half.image[0, :, :8].unique().tolist() == [50]
    assert half.image[0, :, 12:].unique().tolist() == [100]
    assert resize(half, 2.0).segments.equal(sample_of(segments).segments)


@pytest.mark.parametrize(
    ("short", "long", "expected"), [(10, None, (10, 30)), (10, 15, (5, 15)), (40, 200, (40, 120))]
)
def test_resize_short_side_within_the_long_side(short, long, expected):
    assert ResizeShortSide(short, long)(random_sample(20, 60)).segments.shape == expected


def test_same_seed_gives_the_same_sample():
    transform = Compose(RandomScale(24), RandomCrop((16, 16)), ColorJitter())
    sample = random_sample(20, 30)
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(transform(sample))
    assert results[0].image.equal(results[1].image)
    assert results[0].segments.equal(results[1].segments)


def test_jitter_changes_colours_only_and_zero_changes_nothing():
    sample = random_sample(8, 8)
    assert ColorJitter(0, 0, 0)(sample).image.equal(sample.image)
    torch.manual_seed(0)
    changed = ColorJitter()(sample)
    assert not changed.image.equal(sample.image)
    assert changed.segments is sample.segments


def test_normalize_by_hand():
    image = torch.tensor([0, 255, 51], dtype=torch.uint8)[:, None, None]
    result = normalize(image, mean=(0.5, 0.5, 0.1), std=(0.5, 0.25, 0.1))
    torch.testing.assert_close(result.flatten(), torch.tensor([-1.0, 2.0, 1.0]))


def test_collate_pads_images_of_different_sizes():
    samples = [sample_of([[0, 0, 1]] * 5), sample_of([[0] * 9, [-1] * 9])]
    batch = collate(samples, size_divisor=4, num_classes=20, pad_to=3)
    pixel_values, pixel_mask, targets = (
        batch[key] for key in ("pixel_values", "pixel_mask", "targets")
    )
    assert pixel_values.shape == (2, 3, 8, 12) and pixel_values.dtype == torch.float32
    for row, sample in enumerate(samples):
        h, w = sample.segments.shape
        assert pixel_mask[row, :h, :w].all() and pixel_mask[row].sum() == h * w
        assert (pixel_values[row] * ~pixel_mask[row] == 0).all()
        torch.testing.assert_close(pixel_values[row, :, :h, :w], normalize(sample.image))
        assert targets.segments[row, :h, :w].equal(sample.segments)
        assert (targets.segments[row][~pixel_mask[row]] == -1).all()
    assert targets.labels.shape == (2, 3)
    assert targets.num_targets.tolist() == [2, 1]
    assert batch["image_ids"] == [1, 1] and batch["file_names"] == ["a.png", "a.png"]


def test_collate_pads_to_a_size_that_all_batches_have():
    samples = [sample_of([[0, 0, 1]] * 5), sample_of([[0] * 9, [-1] * 9])]
    expected = collate(samples, size_divisor=4, pad_to=3)
    batch = collate(samples, size_divisor=4, pad_to=3, size=(15, 12))
    assert batch["pixel_values"].shape == (2, 3, 16, 12)
    assert batch["pixel_values"][:, :, :8].equal(expected["pixel_values"])
    assert batch["targets"].segments[:, :8].equal(expected["targets"].segments)
    assert (batch["targets"].segments[:, 8:] == -1).all()
    assert not batch["pixel_mask"][:, 8:].any() and not batch["pixel_values"][:, :, 8:].any()
    with pytest.raises(ValueError, match=r"size: expected at least \(5, 9\), got \(5, 8\)"):
        collate(samples, size=(5, 8))


def test_collate_of_images_without_targets():
    batch = collate([sample_of([[-1, -1]])] * 2)
    assert batch["targets"].num_targets.tolist() == [0, 0]
    assert batch["pixel_values"].shape == (2, 3, 32, 32)


def test_collate_needs_a_sample():
    with pytest.raises(ValueError, match="samples: expected at least one"):
        collate([])
