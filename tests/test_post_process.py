import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers_oracle  # noqa: F401  (imports transformers where torchvision does not import)
from map_cases import (
    assert_equal_off_ties,
    class_logits_of,
    interpolate,
    is_tie,
    mask_logits_of,
    random_predictions,
)
from transformers.models.maskformer.image_processing_pil_maskformer import (
    MaskFormerImageProcessorPil,
)

from maskformer_fast.ops.instance_masks import instance_masks
from maskformer_fast.ops.panoptic_map import panoptic_map
from maskformer_fast.ops.semantic_map import semantic_map
from maskformer_fast.post_process import (
    post_process_instance_segmentation,
    post_process_panoptic_segmentation,
    post_process_semantic_segmentation,
    run_lengths,
)

SIZES = [(21, 17), (9, 30), (21, 17)]


def outputs_of(class_logits, mask_logits, **attributes):
    return SimpleNamespace(
        class_queries_logits=class_logits, masks_queries_logits=mask_logits, **attributes
    )


@pytest.fixture
def outputs():
    """Three images, 8 queries, 5 classes, a grid of 7 x 6; things are 0 and 3."""
    return outputs_of(*random_predictions(3, 8, 5, 7, 6), thing_classes=[0, 3])


@pytest.fixture(scope="module")
def theirs():
    return MaskFormerImageProcessorPil()


def image(outputs, index):
    """One image of the batch, as the ops take it."""
    chosen = slice(index, index + 1)
    return outputs.class_queries_logits[chosen], outputs.masks_queries_logits[chosen]


# --- semantic ---------------------------------------------------------------------------------


def test_semantic_maps_at_the_size_of_each_image(outputs):
    maps = post_process_semantic_segmentation(outputs, SIZES)
    for index, (got, size) in enumerate(zip(maps, SIZES, strict=True)):
        assert torch.equal(got, semantic_map(*image(outputs, index), size)[0])


@pytest.mark.parametrize("dialect", ["maskformer", "mask2former", "transformers"])
def test_semantic_scores_of_all_classes_on_request(outputs, dialect):
    labels = post_process_semantic_segmentation(outputs, SIZES, dialect=dialect)
    both = post_process_semantic_segmentation(outputs, SIZES, True, dialect=dialect)
    for got, expected, size in zip(both, labels, SIZES, strict=True):
        assert torch.equal(got.segmentation, expected)
        assert got.segmentation_scores.shape == (5, *size)
        assert torch.equal(got.segmentation_scores.argmax(0), expected)


@pytest.mark.parametrize("sizes", [None, SIZES], ids=["grid", "sizes"])
def test_semantic_equals_transformers_in_its_dialect(outputs, theirs, sizes):
    expected = theirs.post_process_semantic_segmentation(outputs, sizes, True)
    got = post_process_semantic_segmentation(outputs, sizes, True, dialect="transformers")
    for ours, other in zip(got, expected, strict=True):
        torch.testing.assert_close(
            ours.segmentation_scores, other.segmentation_scores, rtol=1e-5, atol=1e-5
        )
        tie = is_tie(ours.segmentation_scores)
        assert_equal_off_ties(ours.segmentation, other.segmentation, tie)


# --- panoptic ---------------------------------------------------------------------------------


def test_panoptic_by_hand():
    class_logits = class_logits_of((2, 0.8), (0, 0.9), (2, 0.95), (0, 0.7), num_classes=3)
    mask_logits = mask_logits_of(
        [0.9, 0.1, 0.1, 0.1], [0.1, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.1], [0.1, 0.1, 0.1, 0.9]
    )
    outputs = outputs_of(class_logits, mask_logits)
    [got] = post_process_panoptic_segmentation(outputs, label_ids_to_fuse={2})
    assert got["segmentation"].tolist() == [[1, 2, 1, 3]]
    assert got["segmentation"].dtype == torch.int32
    assert [{**info, "score": round(info["score"], 4)} for info in got["segments_info"]] == [
        {"id": 1, "label_id": 2, "was_fused": True, "score": 0.95},  # the best of the pieces
        {"id": 2, "label_id": 0, "was_fused": False, "score": 0.9},
        {"id": 3, "label_id": 0, "was_fused": False, "score": 0.7},
    ]


@pytest.mark.parametrize("dialect", ["maskformer", "mask2former", "transformers"])
def test_panoptic_maps_at_the_size_of_each_image(outputs, dialect):
    options = {"overlap_mask_area_threshold": 0.4, "mask_threshold": 0.3, "threshold": 0.2}
    results = post_process_panoptic_segmentation(
        outputs, **options, target_sizes=SIZES, dialect=dialect
    )
    for index, (got, size) in enumerate(zip(results, SIZES, strict=True)):
        expected = panoptic_map(
            *image(outputs, index),
            size,
            thing_classes=outputs.thing_classes,
            score_threshold=0.2,
            mask_threshold=0.3,
            overlap_threshold=0.4,
            dialect=dialect,
        )
        assert torch.equal(got["segmentation"], expected.segments[0])
        ids = [info["id"] for info in got["segments_info"]]
        assert ids == list(range(1, int(expected.segments.max()) + 1))
        for info in got["segments_info"]:
            queries = expected.segment_of_query[0] == info["id"]
            assert (expected.label[0, queries] == info["label_id"]).all()
            assert info["score"] == pytest.approx(expected.score[0, queries].max().item(), abs=1e-6)
            assert info["was_fused"] == (info["label_id"] not in outputs.thing_classes)


@pytest.mark.parametrize("sizes", [None, SIZES], ids=["grid", "sizes"])
def test_panoptic_equals_transformers_in_its_dialect_when_nothing_is_fused(theirs, sizes):
    outputs = outputs_of(*random_predictions(3, 12, 4, 7, 6, seed=1))
    # no ratio of pixel counts equals the threshold: theirs, in float32, rounds up past 0.2
    options = {"threshold": 0.3, "mask_threshold": 0.3, "overlap_mask_area_threshold": 0.2137}
    options.update(label_ids_to_fuse=set(), target_sizes=sizes)
    expected = theirs.post_process_panoptic_segmentation(outputs, **options)
    got = post_process_panoptic_segmentation(outputs, **options, dialect="transformers")
    for index, (ours, other) in enumerate(zip(got, expected, strict=True)):
        size = ours["segmentation"].shape
        class_logits, mask_logits = (part[0] for part in image(outputs, index))
        score, label = class_logits.softmax(-1).max(-1)
        probs = interpolate(mask_logits.sigmoid(), size)[(label < 4) & (score > 0.3)]
        tie = is_tie(probs * score[(label < 4) & (score > 0.3), None, None])
        assert_equal_off_ties(ours["segmentation"], other["segmentation"], tie)
        assert len(other["segments_info"]) > 1
        for segment, their_segment in zip(
            ours["segments_info"], other["segments_info"], strict=True
        ):
            assert segment == {**their_segment, "score": pytest.approx(their_segment["score"])}


def test_the_published_rule_equals_transformers_for_certain_queries_apart_from_each_other(theirs):
    generator = torch.Generator().manual_seed(0)
    owner = torch.randint(0, 6, (1, 8, 9), generator=generator)  # each pixel has one query
    mask_logits = torch.where(owner[:, None] == torch.arange(6)[:, None, None], 9.0, -9.0)
    class_logits = 30 * torch.nn.functional.one_hot(torch.tensor([[0, 1, 2, 3, 0, 4]]), 5).float()
    outputs = outputs_of(class_logits, mask_logits)  # class 4 is "no object"; 1 and 2 are stuff
    [expected] = theirs.post_process_panoptic_segmentation(outputs, label_ids_to_fuse={1, 2})
    [got] = post_process_panoptic_segmentation(outputs, label_ids_to_fuse={1, 2})
    claimed = owner[0] != 5  # where no kept query is near, tiny probabilities decide
    assert torch.equal(got["segmentation"][claimed], expected["segmentation"][claimed])
    assert got["segments_info"] == expected["segments_info"]


def test_nothing_found_is_a_map_of_0(outputs):
    for process in (post_process_panoptic_segmentation, post_process_instance_segmentation):
        for result in process(outputs, 1.0, target_sizes=SIZES):
            assert result["segments_info"] == []
            assert result["segmentation"].dtype == torch.int32
            assert not result["segmentation"].any()


def test_the_stuff_classes_are_fused_unless_they_are_named(outputs):
    sizes = {"threshold": 0.0, "overlap_mask_area_threshold": 0.0}
    by_attribute = post_process_panoptic_segmentation(outputs, **sizes)
    by_name = post_process_panoptic_segmentation(outputs, **sizes, label_ids_to_fuse=[1, 2, 4])
    for one, other in zip(by_attribute, by_name, strict=True):
        assert torch.equal(one["segmentation"], other["segmentation"])
        assert one["segments_info"] == other["segments_info"]
    outputs.thing_classes = None
    with pytest.warns(UserWarning, match="nothing is fused"):
        unknown = post_process_panoptic_segmentation(outputs, **sizes)
    assert not any(info["was_fused"] for result in unknown for info in result["segments_info"])


# --- instances --------------------------------------------------------------------------------


@pytest.fixture
def overlapping():
    """Two instances over each other, of scores 0.9 * 0.8 and 0.8 * 0.95, and a weak third."""
    class_logits = class_logits_of((0, 0.9), (1, 0.8), (0, 0.6), num_classes=2)
    mask_logits = mask_logits_of([0.8, 0.8, 0.8, 0.1], [0.1, 0.95, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7])
    return outputs_of(class_logits, mask_logits)


def test_instances_by_hand(overlapping):
    [got] = post_process_instance_segmentation(overlapping)
    assert got["segmentation"].tolist() == [[2, 1, 2, 0]]
    assert [{**info, "score": round(info["score"], 4)} for info in got["segments_info"]] == [
        {"id": 1, "label_id": 1, "was_fused": False, "score": 0.76},
        {"id": 2, "label_id": 0, "was_fused": False, "score": 0.72},
    ]


def test_overlapping_instances_as_binary_maps_and_as_run_lengths(overlapping):
    [maps] = post_process_instance_segmentation(overlapping, return_binary_maps=True)
    expected = [[False, True, False, False]], [[True, True, True, False]]
    assert maps["segmentation"].tolist() == list(expected)
    [runs] = post_process_instance_segmentation(overlapping, return_coco_annotation=True)
    assert runs["segmentation"] == [[2, 1], [1, 3]]
    assert maps["segments_info"] == runs["segments_info"]
    [none] = post_process_instance_segmentation(overlapping, 0.99, return_binary_maps=True)
    assert none["segmentation"].shape == (0, 1, 4)
    with pytest.raises(ValueError, match="return_coco_annotation, return_binary_maps"):
        post_process_instance_segmentation(overlapping, 0.5, 0.5, 0.8, None, True, True)


def test_instances_are_those_of_the_op_at_the_size_of_each_image(outputs):
    results = post_process_instance_segmentation(outputs, 0.3, target_sizes=SIZES)
    for index, (got, size) in enumerate(zip(results, SIZES, strict=True)):
        found = instance_masks(*image(outputs, index), size, top_k=8, thing_classes=[0, 3])
        kept = int((found.scores >= 0.3).sum())
        assert [info["id"] for info in got["segments_info"]] == list(range(1, kept + 1))
        assert [info["label_id"] for info in got["segments_info"]] == found.labels[
            0, :kept
        ].tolist()
        expected = torch.zeros(size, dtype=torch.int32)
        for rank in reversed(range(kept)):
            expected[found.masks[0, rank]] = rank + 1
        assert torch.equal(got["segmentation"], expected)
        assert kept > 0


def test_instance_scores_equal_transformers_at_the_size_of_the_grid(theirs):
    outputs = outputs_of(*random_predictions(2, 8, 4, 9, 8))
    expected = theirs.post_process_instance_segmentation(outputs, 0.3, return_binary_maps=True)
    got = post_process_instance_segmentation(outputs, 0.3, return_binary_maps=True)
    for ours, other in zip(got, expected, strict=True):
        infos = sorted(other["segments_info"], key=lambda info: -info["score"])
        assert [i["label_id"] for i in ours["segments_info"]] == [i["label_id"] for i in infos]
        for info, their_info in zip(ours["segments_info"], infos, strict=True):
            assert info["score"] == pytest.approx(their_info["score"], abs=1e-5)
        order = [info["id"] for info in infos]
        assert torch.equal(ours["segmentation"], other["segmentation"][order].bool())


def test_arguments_without_an_effect_are_warned_about(outputs):
    with pytest.warns(UserWarning, match="have no effect on instances"):
        post_process_instance_segmentation(outputs, mask_threshold=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        post_process_instance_segmentation(outputs)


def test_no_thing_classes_means_no_instances(outputs):
    outputs.thing_classes = []
    for result in post_process_instance_segmentation(outputs, 0.0, target_sizes=SIZES):
        assert result["segments_info"] == []
        assert not result["segmentation"].any()


@pytest.mark.parametrize(
    ("mask", "runs"),
    [
        ([[0, 0], [0, 0]], []),
        ([[1, 1], [1, 1]], [1, 4]),
        ([[0, 1], [1, 0]], [2, 2]),
        ([[1, 0], [0, 1]], [1, 1, 4, 1]),
    ],
)
def test_run_lengths_by_hand(mask, runs):
    assert run_lengths(np.array(mask, bool)) == runs


# --- all three --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "process",
    [
        post_process_semantic_segmentation,
        post_process_panoptic_segmentation,
        post_process_instance_segmentation,
    ],
)
class TestEach:
    def maps(self, results):
        return [r["segmentation"] if isinstance(r, dict) else r for r in results]

    def test_padding_is_removed_before_resizing(self, process, outputs):
        outputs.region = torch.tensor([[4.0, 6.0], [7.0, 3.0], [5.0, 5.0]])
        got = self.maps(process(outputs, target_sizes=SIZES))
        for index, (rows, columns) in enumerate(outputs.region.int().tolist()):
            class_logits, mask_logits = image(outputs, index)
            cropped = outputs_of(
                class_logits, mask_logits[..., :rows, :columns], thing_classes=[0, 3], region=None
            )
            [expected] = self.maps(process(cropped, target_sizes=[SIZES[index]]))
            assert torch.equal(got[index], expected)

    def test_without_sizes_the_grid_is_returned_whole(self, process, outputs):
        expected = self.maps(process(outputs))
        outputs.region = torch.tensor([[4.0, 6.0], [7.0, 3.0], [5.0, 5.0]])
        for got, other in zip(self.maps(process(outputs)), expected, strict=True):
            assert got.shape == (7, 6)
            assert torch.equal(got, other)

    def test_tables_take_one_copy_to_the_host(self, process, outputs, monkeypatch):
        copies = []
        original = torch.Tensor.cpu
        monkeypatch.setattr(
            torch.Tensor, "cpu", lambda self: copies.append(self.shape) or original(self)
        )
        process(outputs, target_sizes=SIZES)
        assert len(copies) <= 1

    def test_no_images(self, process, outputs):
        class_logits, mask_logits = torch.empty(0, 2, 4), torch.empty(0, 2, 3, 3)
        empty = outputs_of(class_logits, mask_logits, thing_classes=[])
        assert process(empty) == process(empty, target_sizes=[]) == []

    def test_one_size_for_each_image_is_expected(self, process, outputs):
        with pytest.raises(ValueError, match=r"target_sizes: .*3 images, got 2"):
            process(outputs, target_sizes=SIZES[:2])
        with pytest.raises(ValueError, match="size: expected"):
            process(outputs, target_sizes=[(3, 3), (0, 2), (3, 3)])

    def test_sizes_may_be_a_tensor(self, process, outputs):
        expected = self.maps(process(outputs, target_sizes=SIZES))
        got = self.maps(process(outputs, target_sizes=torch.tensor(SIZES)))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    def test_nan_in_every_logit_is_a_map_all_the_same(self, process, outputs):
        outputs.class_queries_logits.fill_(math.nan)
        for result in self.maps(process(outputs)):
            assert not result.any()
