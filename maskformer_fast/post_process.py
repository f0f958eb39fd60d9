"""Label maps, segments and instances in the form that users of transformers expect.

The three functions take the arguments and return the structures of transformers'
MaskFormerImageProcessor; the rules are those of `maskformer_fast.ops`, by default the published
ones (`dialect="maskformer"`). What differs from transformers on purpose: void is 0 in every map,
ids count from 1 and are unique, pieces of stuff that were fused are listed once, with the highest
score among them, and run lengths come one list per listed segment.

`outputs` is any object with

    class_queries_logits  [B, Q, K+1]
    masks_queries_logits  [B, Q, h, w]
    region         optional, [B, 2]: rows and columns of the mask grid without the padding
    thing_classes  optional, list of int: the classes that are not stuff

where an optional attribute may be missing or None. `target_sizes` is a (height, width) per image;
the padding is removed before resizing to it. Without it the maps have the size of the mask grid,
padding included. Maps stay on the device of the logits; tables are read with one copy to the host.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskformer_fast.ops import checks
from maskformer_fast.ops.instance_masks import instance_masks
from maskformer_fast.ops.panoptic_map import DIALECTS, panoptic_map
from maskformer_fast.ops.semantic_map import class_score_bands, semantic_map

SCORE_DIGITS = 6  # of the scores in segments_info

SegmentInfo = dict[str, Any]  # id, label_id, was_fused, score


class SemanticSegmentation(NamedTuple):
    """A label map and the scores of all classes that it is the argmax of."""

    segmentation: Tensor  # [H, W] int64
    segmentation_scores: Tensor  # [K, H, W] float32


class _Group(NamedTuple):
    """The images of a batch that are wanted at one size."""

    images: list[int]
    size: tuple[int, int]
    class_logits: Tensor  # [b, Q, K+1]
    mask_logits: Tensor  # [b, Q, h, w]
    region: Tensor | None  # [b, 2]


def post_process_semantic_segmentation(
    outputs: Any,
    target_sizes: Sequence[tuple[int, int]] | None = None,
    return_segmentation_scores: bool = False,
    *,
    dialect: str = "maskformer",
) -> list[Tensor] | list[SemanticSegmentation]:
    """Class maps [H, W] int64, one per image.

    With `return_segmentation_scores` each comes with the scores of all classes [K, H, W], which
    takes K full-size maps of memory. Dialect "transformers" sums before it upsamples.
    """
    checks.one_of("dialect", dialect, DIALECTS)
    order = "transformers" if dialect == "transformers" else "maskformer"
    groups = _groups(outputs, target_sizes)
    results: list[Any] = []
    for group in groups:
        if return_segmentation_scores:
            results += _semantic_with_scores(group, order)
        else:
            results += semantic_map(
                group.class_logits, group.mask_logits, group.size, order=order, region=group.region
            )
    return _in_batch_order(groups, results)


def post_process_panoptic_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int] | None = None,
    target_sizes: Sequence[tuple[int, int]] | None = None,
    *,
    dialect: str = "maskformer",
) -> list[dict[str, Any]]:
    """Per image "segmentation" [H, W] int32 (0: void) and "segments_info", in order of id.

    threshold, mask_threshold, overlap_mask_area_threshold, dialect: as in `panoptic_map`.
    label_ids_to_fuse: the stuff classes; None: those that `outputs.thing_classes` does not name,
    and without that attribute none, with a warning.
    """
    num_classes = outputs.class_queries_logits.shape[-1] - 1
    fused = _stuff_classes(outputs, num_classes, label_ids_to_fuse)
    things = [label for label in range(num_classes) if label not in fused]
    groups = _groups(outputs, target_sizes)
    maps: list[Tensor] = []
    tables: list[Tensor] = []
    for group in groups:
        found = panoptic_map(
            group.class_logits,
            group.mask_logits,
            group.size,
            thing_classes=things,
            score_threshold=threshold,
            mask_threshold=mask_threshold,
            overlap_threshold=overlap_mask_area_threshold,
            dialect=dialect,
            region=group.region,
        )
        maps += found.segments
        tables.append(_table(found.segment_of_query, found.label, found.score))
    results = [
        {"segmentation": segments, "segments_info": _segments_info(rows, fused)}
        for segments, rows in zip(maps, _to_host(tables), strict=True)
    ]
    return _in_batch_order(groups, results)


def post_process_instance_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    target_sizes: Sequence[tuple[int, int]] | None = None,
    return_coco_annotation: bool = False,
    return_binary_maps: bool = False,
) -> list[dict[str, Any]]:
    """Per image "segmentation" and "segments_info": the instances with score >= threshold.

    The Q best pairs of query and class are looked at, things only where `outputs.thing_classes`
    names them; ids count from 1 by falling score. "segmentation" is

        a map [H, W] int32, 0 void, where overlapping instances show the one with the higher score;
        with return_binary_maps all masks [n, H, W] bool;
        with return_coco_annotation the `run_lengths` of each mask.

    mask_threshold and overlap_mask_area_threshold have no effect, as in transformers: a mask is
    where the logit is > 0. Other values than the defaults are warned about.
    """
    if return_coco_annotation and return_binary_maps:
        raise ValueError("return_coco_annotation, return_binary_maps: expected one, got both")
    if (mask_threshold, overlap_mask_area_threshold) != (0.5, 0.8):
        warnings.warn(
            "mask_threshold and overlap_mask_area_threshold have no effect on instances",
            stacklevel=2,
        )
    groups = _groups(outputs, target_sizes)
    separate = return_binary_maps or return_coco_annotation
    maps: list[Tensor] = []
    tables: list[Tensor] = []
    for group in groups:
        found = instance_masks(
            group.class_logits,
            group.mask_logits,
            group.size,
            top_k=group.class_logits.shape[1],
            thing_classes=getattr(outputs, "thing_classes", None),
            region=group.region,
        )
        keep = (found.scores >= threshold) & (found.boxes[..., 2] > 0)  # an empty mask has no box
        ids = torch.where(keep, keep.cumsum(-1), 0)
        maps += found.masks if separate else _paint(found.masks, ids)
        tables.append(_table(ids, found.labels, found.scores))
    results = []
    for found_map, rows in zip(maps, _to_host(tables), strict=True):
        segmentation: Any = found_map[np.flatnonzero(rows[:, 0])] if separate else found_map
        if return_coco_annotation:
            segmentation = [run_lengths(mask) for mask in segmentation.cpu().numpy()]
        results.append({"segmentation": segmentation, "segments_info": _segments_info(rows, ())})
    return _in_batch_order(groups, results)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Run-length encoding [start, length, ...] of a mask [H, W] bool, row by row, starts from 1."""
    edges = np.diff(mask.reshape(-1).astype(np.int8), prepend=0, append=0)
    starts, ends = np.flatnonzero(edges > 0), np.flatnonzero(edges < 0)
    return np.stack([starts + 1, ends - starts], -1).reshape(-1).tolist()


def _groups(outputs: Any, target_sizes: Sequence[tuple[int, int]] | None) -> list[_Group]:
    """The batch by size wanted; one group with everything if all sizes are equal or none given."""
    class_logits = outputs.class_queries_logits.detach()
    mask_logits = outputs.masks_queries_logits.detach()
    region = None if target_sizes is None else getattr(outputs, "region", None)
    if target_sizes is None:
        target_sizes = [tuple(mask_logits.shape[-2:])] * len(class_logits)
    if len(target_sizes) != len(class_logits):
        raise ValueError(
            f"target_sizes: expected one (height, width) for each of {len(class_logits)} images,"
            f" got {len(target_sizes)}"
        )
    images_of: dict[tuple[int, int], list[int]] = {}
    for image, size in enumerate(target_sizes):
        images_of.setdefault(checks.output_size(size), []).append(image)
    if len(images_of) == 1:
        [(size, images)] = images_of.items()
        return [_Group(images, size, class_logits, mask_logits, region)]
    return [
        _Group(
            images,
            size,
            class_logits[images],
            mask_logits[images],
            None if region is None else region[images],
        )
        for size, images in images_of.items()
    ]


def _in_batch_order(groups: list[_Group], results: list[Any]) -> list[Any]:
    """`results` are in the order of the groups' images."""
    images = [image for group in groups for image in group.images]
    return [result for _, result in sorted(zip(images, results, strict=True), key=lambda p: p[0])]


def _semantic_with_scores(group: _Group, order: str) -> list[SemanticSegmentation]:
    results = []
    for image, (class_logits, mask_logits) in enumerate(
        zip(group.class_logits, group.mask_logits, strict=True)
    ):
        extent = None if group.region is None else group.region[image]
        bands = class_score_bands(class_logits, mask_logits, group.size, order, extent)
        scores = torch.cat([band for _, band in bands], 1)
        results.append(SemanticSegmentation(scores.argmax(0), scores))
    return results


def _stuff_classes(
    outputs: Any, num_classes: int, label_ids_to_fuse: Collection[int] | None
) -> Collection[int]:
    if label_ids_to_fuse is not None:
        return frozenset(label_ids_to_fuse)
    things = getattr(outputs, "thing_classes", None)
    if things is None:
        warnings.warn(
            "label_ids_to_fuse is not given and outputs.thing_classes neither: nothing is fused",
            stacklevel=3,
        )
        return frozenset()
    return frozenset(range(num_classes)) - frozenset(things)


def _paint(masks: Tensor, ids: Tensor) -> Tensor:
    """masks [B, k, H, W] and ids [B, k] (0: left out) -> map [B, H, W] int32, first mask on top."""
    b, _, height, width = masks.shape
    void = masks.new_ones(b, 1, height, width)  # the last layer covers everything
    layers = torch.cat([masks & (ids > 0)[..., None, None], void], 1)
    top = layers.to(torch.uint8).argmax(1)  # [B, H, W], the first layer that covers
    ids = torch.cat([ids, ids.new_zeros(b, 1)], 1)
    return ids.gather(1, top.flatten(1)).view_as(top).int()


def _table(ids: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """[B, n, 3] floating: id (0: no segment), label, score. Small integers are exact in it."""
    return torch.stack([ids.to(scores.dtype), labels.to(scores.dtype), scores], -1)


def _to_host(tables: list[Tensor]) -> np.ndarray | list[np.ndarray]:
    """All tables of a batch with one copy, one array [n, 3] per image."""
    return torch.cat(tables).cpu().numpy() if tables else []


def _segments_info(rows: np.ndarray, fused: Collection[int]) -> list[SegmentInfo]:
    """The segments of a table, in order of id, each once with its highest score."""
    segments: dict[int, SegmentInfo] = {}
    for row in rows:
        segment_id, label, score = int(row[0]), int(row[1]), float(row[2])
        if segment_id == 0:
            continue
        segment = segments.setdefault(
            segment_id,
            {"id": segment_id, "label_id": label, "was_fused": label in fused, "score": 0.0},
        )
        segment["score"] = max(segment["score"], round(score, SCORE_DIGITS))
    return [segments[segment_id] for segment_id in sorted(segments)]
