"""panoptic_map: queries compete for pixels; what they win becomes things, stuff and void.

    s, label  = max of softmax(class_logits)
    kept      : label is not "no object" and s > score_threshold
    prob      = sigmoid(upsample(x))
    winner    = argmax over kept queries of s * prob, at every pixel
    area      = pixels won
    original  = pixels with prob >= mask_threshold
    dropped   : area = 0, original = 0 or area / original < overlap_threshold
    ids       : in query order from 1; a thing has its own, a stuff class one for all its queries

Dialect "mask2former" writes a won pixel only where prob >= mask_threshold, and drops a query with
no such pixel. Dialect "transformers" upsamples after the sigmoid, counts `original` where
s * prob >= mask_threshold, and drops a query unless area / original > overlap_threshold.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from maskformer_fast.ops import checks, compiled_maps
from maskformer_fast.ops.cuda_launch import Kernels, cuda_backends
from maskformer_fast.ops.floats import float_type
from maskformer_fast.ops.probabilities import class_probabilities, is_among, mask_probabilities
from maskformer_fast.ops.registry import compiled_module, register, resolve
from maskformer_fast.ops.upsample import row_bands

DIALECTS = ("maskformer", "mask2former", "transformers")


class PanopticMap(NamedTuple):
    """Segments of a batch, and for every query the segment it became a part of."""

    segments: Tensor  # [B, H, W] int32, 0 is void
    segment_of_query: Tensor  # [B, Q] int32, 0 if not kept or dropped
    area: Tensor  # [B, Q] int32, pixels of `segments` that the query wrote
    score: Tensor  # [B, Q] float32
    label: Tensor  # [B, Q] int64, K is "no object"


class _Rules(NamedTuple):
    thing_classes: list[int]
    score_threshold: float
    mask_threshold: float
    overlap_threshold: float
    dialect: str


class _Contest(NamedTuple):
    """The outcome of the pixels' argmax in one image."""

    winner: Tensor  # [H, W] int64, a query
    written: Tensor  # [H, W] bool, the winner writes this pixel
    area: Tensor  # [Q] int64, pixels won
    written_area: Tensor  # [Q] int64, pixels won and written
    original: Tensor  # [Q] int64, pixels of the query's own mask


def reference(
    class_logits: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    thing_classes: list[int],
    score_threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
    dialect: str,
    region: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of PanopticMap, one image after the other."""
    rules = _Rules(thing_classes, score_threshold, mask_threshold, overlap_threshold, dialect)
    segments, segment_of_query, area, score, label = _fake(
        class_logits, mask_logits, height, width, *rules, region
    )
    for image, image_probs in enumerate(class_probabilities(class_logits)):
        score[image], label[image] = image_probs.max(-1)
        kept = (label[image] < image_probs.shape[-1] - 1) & (score[image] > score_threshold)
        contest = _compete(
            score[image],
            kept,
            mask_logits[image],
            (height, width),
            None if region is None else region[image],
            rules,
        )
        standing = kept & _survives(contest, score.dtype, rules)
        ids = _segment_ids(standing, label[image], rules.thing_classes)
        segments[image] = torch.where(contest.written, ids[contest.winner], 0)
        segment_of_query[image] = ids
        area[image] = torch.where(standing, contest.written_area, 0)
    return segments, segment_of_query, area, score, label


def _compete(
    score: Tensor,  # [Q]
    kept: Tensor,  # [Q] bool
    mask_logits: Tensor,  # [Q, h, w]
    size: tuple[int, int],
    region: Tensor | None,  # [2]
    rules: _Rules,
) -> _Contest:
    after_sigmoid = rules.dialect == "transformers"
    grid = mask_probabilities(mask_logits) if after_sigmoid else mask_logits
    winner = torch.empty(size, dtype=torch.int64, device=score.device)
    written = torch.ones(size, dtype=torch.bool, device=score.device)
    area, written_area, original = torch.zeros(
        3, len(score), dtype=torch.int64, device=score.device
    )
    for rows, band in row_bands(grid, size, region):
        prob = band if after_sigmoid else mask_probabilities(band)  # [Q, rows, W]
        weighted = score[:, None, None] * prob
        own = (weighted if after_sigmoid else prob) >= rules.mask_threshold
        first = torch.where(kept[:, None, None], weighted, -1).argmax(0)  # the lowest of equals
        winner[rows] = first
        if rules.dialect == "mask2former":
            written[rows] = own.gather(0, first[None])[0]
        original += own.sum((1, 2))
        area.scatter_add_(0, first.flatten(), torch.ones_like(first).flatten())
        written_area.scatter_add_(0, first.flatten(), written[rows].flatten().long())
    return _Contest(winner, written, area, written_area, original)


def _survives(contest: _Contest, dtype: torch.dtype, rules: _Rules) -> Tensor:
    """Rule 3, [Q] bool. The ratio is of `dtype`, and the threshold is rounded to it."""
    seen = (contest.written_area > 0) & (contest.original > 0)
    ratio = contest.area.to(dtype) / contest.original.clamp(min=1)
    if rules.dialect == "transformers":
        return seen & (ratio > rules.overlap_threshold)
    return seen & (ratio >= rules.overlap_threshold)


def _segment_ids(standing: Tensor, label: Tensor, thing_classes: list[int]) -> Tensor:
    """Rule 4: ids [Q] int32 of the queries that stand, 0 for the others."""
    stuff = standing & ~is_among(label, thing_classes)
    fused = stuff[:, None] & stuff & (label[:, None] == label)  # [Q, Q], symmetric
    order = torch.arange(len(label), device=label.device)
    leader = torch.where(stuff, fused.int().argmax(1), order)  # the first query of the segment
    ids = (standing & (leader == order)).cumsum(0)
    return torch.where(standing, ids[leader], 0).int()


def _fake(
    class_logits: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    thing_classes: list[int],
    score_threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
    dialect: str,
    region: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    b, q, _ = class_logits.shape
    compute = torch.promote_types(class_logits.dtype, torch.float32)
    return (
        class_logits.new_empty(b, height, width, dtype=torch.int32),
        class_logits.new_empty(b, q, dtype=torch.int32),
        class_logits.new_empty(b, q, dtype=torch.int32),
        class_logits.new_empty(b, q, dtype=compute),
        class_logits.new_empty(b, q, dtype=torch.int64),
    )


def compiled(
    class_logits: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    thing_classes: list[int],
    score_threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
    dialect: str,
    region: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference`, in C++: csrc/cpu/panoptic_map.cpp, threads over strips of the grid."""
    rules = _Rules(thing_classes, score_threshold, mask_threshold, overlap_threshold, dialect)
    segments, segment_of_query, area, score, label = outputs = _fake(
        class_logits, mask_logits, height, width, *rules, region
    )
    mask_logits, region = compiled_maps.dense(mask_logits, region)
    probs = class_probabilities(class_logits)
    torch.max(probs, -1, out=(score, label))
    num_classes = probs.shape[-1] - 1
    is_thing = is_among(torch.arange(num_classes), thing_classes)
    compiled_module().panoptic_map(
        **compiled_maps.addresses(mask_logits, region, height, width),
        score=score.data_ptr(),
        label=label.data_ptr(),
        is_thing=is_thing.data_ptr(),
        segments=segments.data_ptr(),
        segment_of_query=segment_of_query.data_ptr(),
        area=area.data_ptr(),
        classes=num_classes,
        dialect=DIALECTS.index(dialect),
        score_threshold=score_threshold,
        mask_threshold=mask_threshold,
        overlap_threshold=overlap_threshold,
        prune=compiled_maps.PRUNE,
    )
    return outputs


def on_cuda(
    kernels: Kernels,
    class_logits: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    thing_classes: list[int],
    score_threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
    dialect: str,
    region: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference`, in four kernels: csrc/cuda/panoptic_map.cu."""
    rules = _Rules(thing_classes, score_threshold, mask_threshold, overlap_threshold, dialect)
    segments, segment_of_query, area, score, label = outputs = _fake(
        class_logits, mask_logits, height, width, *rules, region
    )
    b, q, k = class_logits.shape
    kernels(
        "panoptic_map",
        class_logits=class_logits.contiguous(),
        mask_logits=mask_logits.contiguous(),
        type=float_type(mask_logits),
        region=None if region is None else region.to(torch.float64).contiguous(),
        thing_classes=thing_classes,
        segments=segments,
        segment_of_query=segment_of_query,
        area=area,
        score=score,
        label=label,
        sizes=(*mask_logits.shape, height, width),
        classes=k - 1,
        dialect=DIALECTS.index(dialect),
        score_threshold=score_threshold,
        mask_threshold=mask_threshold,
        overlap_threshold=overlap_threshold,
        workspace=kernels.workspace("panoptic_map", mask_logits.device, b, q, k - 1),
    )
    return outputs


_panoptic_map = register(
    "panoptic_map",
    "(Tensor class_logits, Tensor mask_logits, SymInt height, SymInt width, int[] thing_classes,"
    " float score_threshold, float mask_threshold, float overlap_threshold, str dialect,"
    " Tensor? region, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    backends={"reference": reference, "cpu": compiled, **cuda_backends(on_cuda)},
)


def panoptic_map(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    *,
    thing_classes: Collection[int],
    score_threshold: float = 0.8,
    mask_threshold: float = 0.5,
    overlap_threshold: float = 0.8,
    dialect: str = "maskformer",
    region: Tensor | None = None,
    backend: str = "auto",
) -> PanopticMap:
    """Segments of every image, by the rules above; ties go to the lower query.

    class_logits   [B, Q, K+1]   float32, float16, bfloat16 (float64: reference), Q >= 1
    mask_logits    [B, Q, h, w]  same dtype and device
    size           (H, W) of the segments
    thing_classes  the classes of [0, K) whose every query is a segment; the others are stuff
    thresholds     >= 0, rounded to float32 and compared with the float32 score, probability and
                   ratio of pixel counts (float64 for float64 inputs)
    dialect        "maskformer", "mask2former" or "transformers"
    region         [B, 2] float32 or float64: rows and columns of the mask grid, in cells from its
                   top-left, that the unpadded image covers, 0 < r <= h; None: all of it

    Score and label are those of every query, kept or not; score is float64 for float64 inputs. A
    probability that is NaN counts as 0. No gradient, no host read; the Q full-size maps are not
    stored. Raises TypeError or ValueError naming the argument that is off.
    """
    sizes = checks.predictions(class_logits, mask_logits, region)
    height, width = checks.output_size(size)
    things = checks.class_ids("thing_classes", thing_classes, sizes)
    checks.one_of("dialect", dialect, DIALECTS)
    checks.at_least("score_threshold", score_threshold, 0)
    checks.at_least("mask_threshold", mask_threshold, 0)
    checks.at_least("overlap_threshold", overlap_threshold, 0)
    chosen = resolve("panoptic_map", backend, mask_logits.device.type, mask_logits.dtype)
    fields = _panoptic_map(
        class_logits.detach(),
        mask_logits.detach(),
        height,
        width,
        things,
        float(score_threshold),
        float(mask_threshold),
        float(overlap_threshold),
        dialect,
        region,
        chosen,
    )
    return PanopticMap(*fields)
