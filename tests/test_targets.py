"""Targets: what the three constructors build, pad and refuse."""

import pytest
import torch
from torch import tensor

from maskformer_fast import Targets
from maskformer_fast.targets import MAX_TARGETS


def two_images() -> Targets:
    segments = [tensor([[0, 1], [-1, 1]]), tensor([[0, 0, 0]])]
    return Targets.from_segments(segments, [tensor([3, 1]), tensor([2])], num_classes=4)


def test_segments_are_padded_with_void_at_the_bottom_right():
    targets = two_images()
    assert targets.labels.tolist() == [[3, 1], [2, 0]]
    assert targets.num_targets.tolist() == [2, 1] and targets.num_targets.dtype == torch.int32
    assert targets.segments.dtype == torch.int16
    assert targets.segments.tolist() == [
        [[0, 1, -1], [-1, 1, -1]],
        [[0, 0, 0], [-1, -1, -1]],
    ]
    assert targets.is_target.tolist() == [[True, True], [True, False]]
    assert targets.size == (2, 3) and targets.pixels is targets.segments


def test_size_and_pad_to_fix_the_shapes():
    targets = Targets.from_segments(
        [tensor([[0]])], [tensor([1])], num_classes=2, size=(2, 3), pad_to=5
    )
    assert targets.labels.shape == (1, 5) and targets.segments.shape == (1, 2, 3)
    masks = Targets.from_masks(
        [torch.ones(1, 1, 1)], [tensor([1])], num_classes=2, size=(2, 3), pad_to=5
    )
    assert masks.masks.shape == (1, 5, 2, 3) and int(masks.masks.sum()) == 1
    assert two_images().padded(4).labels.tolist() == [[3, 1, 0, 0], [2, 0, 0, 0]]
    assert masks.padded(6).masks.shape == (1, 6, 2, 3)


def test_masks_may_overlap_and_come_as_numbers():
    masks = [torch.ones(2, 2, 2, dtype=torch.uint8), torch.zeros(0, 1, 3)]
    targets = Targets.from_masks(masks, [tensor([0, 1]), tensor([]).long()])
    assert targets.masks.dtype == torch.bool and targets.masks.shape == (2, 2, 2, 3)
    assert targets.masks[0, :, :, :2].all() and not targets.masks[1].any()
    assert targets.num_targets.tolist() == [2, 0]


def test_panoptic_ids_become_indices_and_crowds_and_unlisted_ids_become_void():
    ids = tensor([[7, 7, 300], [9, 0, 11]])
    infos = [
        {"id": 300, "category_id": 2},
        {"id": 7, "category_id": 0, "iscrowd": 0},
        {"id": 9, "category_id": 1, "iscrowd": 1},
        {"id": 50, "category_id": 1},  # no pixel: left out
    ]
    targets = Targets.from_panoptic([ids], [infos], num_classes=3)
    assert targets.labels.tolist() == [[2, 0]]
    assert targets.segments.tolist() == [[[1, 1, 0], [-1, -1, -1]]]


def test_no_target_at_all_is_legal():
    targets = Targets.from_segments([torch.full((2, 2), -1)], [tensor([]).long()], num_classes=3)
    assert targets.labels.shape == (1, 0) and targets.num_targets.tolist() == [0]


def test_to_moves_every_tensor():
    moved = two_images().to("meta")
    assert {moved.labels.device.type, moved.pixels.device.type, moved.num_targets.device.type} == {
        "meta"
    }
    assert moved.masks is None


SEGMENTS, LABELS = [tensor([[0, 1]])], [tensor([0, 1])]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": [tensor([0, 5])]}, ValueError, r"labels\[0\]: expected labels in \[0, 5\)"),
        ({"labels": [tensor([0, 255])]}, ValueError, "got 0 to 255"),
        ({"labels": [tensor([0, -1])]}, ValueError, "got -1 to 0"),
        ({"labels": [tensor([0])]}, ValueError, r"segments\[0\]: expected target indices < 1"),
        ({"labels": []}, ValueError, "labels: expected one tensor for each of 1 images, got 0"),
        ({"labels": [tensor([0.0, 1.0])]}, TypeError, r"labels\[0\]: expected an integer dtype"),
        ({"segments": [tensor([[0.0, 1.0]])]}, TypeError, r"segments\[0\]: expected an integer"),
        ({"labels": [[0, 1]]}, TypeError, r"labels\[0\]: expected a torch.Tensor, got list"),
        ({"segments": [tensor([0, 1])]}, ValueError, r"segments\[0\]: expected 2 dimensions"),
        ({"size": (1, 1)}, ValueError, r"segments\[0\]: expected at most 1 x 1 pixels"),
        ({"pad_to": 1}, ValueError, "pad_to: expected between 2"),
        ({"pad_to": MAX_TARGETS + 1}, ValueError, "and 32767"),
    ],
)
def test_bad_segments_are_refused_with_the_images_index(arguments, error, message):
    with pytest.raises(error, match=message):
        Targets.from_segments(
            **({"segments": SEGMENTS, "labels": LABELS, "num_classes": 5} | arguments)
        )


def test_too_many_targets_are_refused():
    many = torch.zeros(MAX_TARGETS + 1, dtype=torch.long)
    with pytest.raises(ValueError, match="32767"):
        Targets.from_segments([tensor([[0]])], [many])


@pytest.mark.parametrize(
    ("masks", "labels", "message"),
    [
        (torch.ones(1, 2, 2), tensor([0, 1]), r"mask_labels\[0\]: expected 2 masks"),
        (torch.full((1, 2, 2), 255.0), tensor([0]), "expected only 0 and 1, got .*255"),
        (torch.ones(2, 2), tensor([0]), r"mask_labels\[0\]: expected 3 dimensions"),
    ],
)
def test_bad_masks_are_refused(masks, labels, message):
    with pytest.raises(ValueError, match=message):
        Targets.from_masks([masks], [labels])


def test_the_parts_must_fit_together():
    labels, counts = torch.zeros(1, 2, dtype=torch.long), torch.ones(1, dtype=torch.int32)
    segments = torch.zeros(1, 2, 2, dtype=torch.int16)
    with pytest.raises(ValueError, match="all tensors on one device"):
        Targets(labels, counts, segments=segments.to("meta"))
    with pytest.raises(ValueError, match=r"segments_info\[0\]: expected id and category_id"):
        Targets.from_panoptic([torch.ones(1, 1)], [[{"id": 1}]])
    with pytest.raises(ValueError, match="exactly one of"):
        Targets(labels, counts)
    with pytest.raises(TypeError, match="segments: expected dtype"):
        Targets(labels, counts, segments=segments.int())
    with pytest.raises(ValueError, match="masks: expected shape"):
        Targets(labels, counts, masks=torch.zeros(1, 3, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="segments_info: expected 1 lists"):
        Targets.from_panoptic([torch.zeros(1, 1)], [])
