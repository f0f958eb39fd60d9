"""instance_masks: the best (query, class) pairs, each with its mask, box and score.

pairs  top-k of softmax(class_logits)[q, k] over all queries and thing classes
mask   upsample(mask_logits[q]) > 0
score  class probability * mean of sigmoid(upsample(mask_logits[q])) inside the mask
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskformer_fast.ops import checks, compiled_maps
from maskformer_fast.ops.cuda_launch import Kernels, cuda_backends
from maskformer_fast.ops.floats import float_type
from maskformer_fast.ops.probabilities import class_probabilities, is_among, mask_probabilities
from maskformer_fast.ops.registry import compiled_module, register, resolve
from maskformer_fast.ops.upsample import row_bands


class InstanceMasks(NamedTuple):
    """Instances of a batch, sorted by falling score."""

    scores: Tensor  # [B, k] float32
    labels: Tensor  # [B, k] int64
    masks: Tensor  # [B, k, H, W] bool
    boxes: Tensor  # [B, k, 4] int32, half-open pixel edges x0 y0 x1 y1


def reference(
    class_logits: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    top_k: int,
    thing_classes: list[int] | None,
    region: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of InstanceMasks, one image after the other."""
    scores, labels, masks, boxes = _fake(
        class_logits, mask_logits, height, width, top_k, thing_classes, region
    )
    num_classes = class_logits.shape[-1] - 1
    for image, probs in enumerate(class_probabilities(class_logits)[..., :-1]):
        pairs = _best_pairs(probs, thing_classes, scores.shape[1])
        extent = None if region is None else region[image]
        found, mean = _masks(mask_logits[image, pairs // num_classes], (height, width), extent)
        score, order = (probs.flatten()[pairs] * mean).sort(descending=True, stable=True)
        scores[image], labels[image] = score, pairs[order] % num_classes
        masks[image] = found[order]
        boxes[image] = _boxes(masks[image])
    return scores, labels, masks, boxes


def _best_pairs(probs: Tensor, thing_classes: list[int] | None, count: int) -> Tensor:
    """Flat indices q * K + k of the `count` largest of probs [..., Q, K], ascending: [..., count].

    Of equals the lower index is taken.
    """
    if thing_classes is not None:
        classes = torch.arange(probs.shape[-1], device=probs.device)
        probs = torch.where(is_among(classes, thing_classes), probs, -1)
    ranking = probs.flatten(-2).sort(descending=True, stable=True).indices
    return ranking[..., :count].sort().values


def _masks(
    mask_logits: Tensor,  # [k, h, w]
    size: tuple[int, int],
    region: Tensor | None,  # [2]
) -> tuple[Tensor, Tensor]:
    """Masks [k, H, W] and the mean probability inside each [k], 0 where a mask is empty."""
    masks = torch.empty(len(mask_logits), *size, dtype=torch.bool, device=mask_logits.device)
    total = torch.zeros(
        len(mask_logits),
        dtype=torch.promote_types(mask_logits.dtype, torch.float32),
        device=mask_logits.device,
    )
    for rows, logits in row_bands(mask_logits, size, region):
        masks[:, rows] = logits > 0
        total += (mask_probabilities(logits) * masks[:, rows]).sum((1, 2))
    return masks, total / masks.sum((1, 2)).clamp(min=1)


def _boxes(masks: Tensor) -> Tensor:
    """masks [k, H, W] -> x0 y0 x1 y1 [k, 4] int32, 0 for an empty mask."""
    x0, x1 = _extent(masks.any(1))
    y0, y1 = _extent(masks.any(2))
    return torch.stack([x0, y0, x1, y1], -1).int()


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First and one past the last True of every row of occupied [k, n]; 0, 0 if there is none."""
    first = occupied.int().argmax(-1)
    end = occupied.shape[-1] - occupied.flip(-1).int().argmax(-1)
    return first, torch.where(occupied.any(-1), end, 0)


def _fake(
    class_logits: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    top_k: int,
    thing_classes: list[int] | None,
    region: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, q, classes = class_logits.shape
    k = min(top_k, q * (classes - 1 if thing_classes is None else len(thing_classes)))
    compute = torch.promote_types(class_logits.dtype, torch.float32)
    return (
        class_logits.new_empty(b, k, dtype=compute),
        class_logits.new_empty(b, k, dtype=torch.int64),
        class_logits.new_empty(b, k, height, width, dtype=torch.bool),
        class_logits.new_empty(b, k, 4, dtype=torch.int32),
    )


def compiled(
    class_logits: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    top_k: int,
    thing_classes: list[int] | None,
    region: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference`, in C++: csrc/cpu/instance_masks.cpp, threads over queries.

    A query that was selected under several labels is looked at once.
    """
    scores, _, masks, _ = _fake(
        class_logits, mask_logits, height, width, top_k, thing_classes, region
    )
    mask_logits, region = compiled_maps.dense(mask_logits, region)
    probs = class_probabilities(class_logits)[..., :-1]
    b, q, num_classes = probs.shape
    count = scores.shape[1]
    pairs = _best_pairs(probs, thing_classes, count)
    grids = pairs // num_classes + q * torch.arange(b)[:, None]  # [B, k], of all B * Q
    distinct, which = grids.unique(return_inverse=True)
    mean = torch.empty(len(distinct), dtype=torch.float32)
    boxes = torch.empty(len(distinct), 4, dtype=torch.int32)
    module, inputs = compiled_module(), compiled_maps.addresses(mask_logits, region, height, width)
    module.instance_statistics(
        **inputs,
        query=distinct.data_ptr(),
        count=len(distinct),
        mean=mean.data_ptr(),
        boxes=boxes.data_ptr(),
    )
    scores, order = (probs.flatten(1).gather(1, pairs) * mean[which]).sort(
        descending=True, stable=True
    )
    query = grids.gather(1, order)
    module.instance_masks(
        **inputs, query=query.data_ptr(), count=query.numel(), masks=masks.data_ptr()
    )
    return scores, pairs.gather(1, order) % num_classes, masks, boxes[which.gather(1, order)]


def on_cuda(
    kernels: Kernels,
    class_logits: Tensor,
    mask_logits: Tensor,
    height: int,
    width: int,
    top_k: int,
    thing_classes: list[int] | None,
    region: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference`, in CUDA: csrc/cuda/instance_masks.cu, between sorting in torch."""
    scores, _, masks, _ = _fake(
        class_logits, mask_logits, height, width, top_k, thing_classes, region
    )
    probs = class_probabilities(class_logits)[..., :-1]
    b, q, num_classes = probs.shape
    pairs = _best_pairs(probs, thing_classes, scores.shape[1])
    grids = pairs // num_classes + q * torch.arange(b, device=pairs.device)[:, None]  # of B * Q
    wanted = torch.zeros(b * q, dtype=torch.bool, device=pairs.device)
    mean = probs.new_empty(b * q)
    boxes = torch.empty(b * q, 4, dtype=torch.int32, device=pairs.device)
    sizes = (*mask_logits.shape, height, width)
    inputs: dict[str, Any] = {
        "mask_logits": mask_logits.contiguous(),
        "type": float_type(mask_logits),
        "sizes": sizes,
        "workspace": kernels.workspace("instance_masks", masks.device, *sizes),
    }
    kernels(
        "instance_statistics",
        **inputs,
        region=None if region is None else region.to(torch.float64).contiguous(),
        wanted=wanted.index_fill_(0, grids.flatten(), True),
        mean=mean,
        boxes=boxes,
    )
    scores, order = (probs.flatten(1).gather(1, pairs) * mean[grids]).sort(
        descending=True, stable=True
    )
    grids = grids.gather(1, order)
    kernels("instance_masks", **inputs, query=grids, count=grids.numel(), masks=masks)
    return scores, pairs.gather(1, order) % num_classes, masks, boxes[grids]


_instance_masks = register(
    "instance_masks",
    "(Tensor class_logits, Tensor mask_logits, SymInt height, SymInt width, int top_k,"
    " int[]? thing_classes, Tensor? region, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    backends={"reference": reference, "cpu": compiled, **cuda_backends(on_cuda)},
)


def instance_masks(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    *,
    top_k: int = 100,
    thing_classes: Collection[int] | None = None,
    region: Tensor | None = None,
    backend: str = "auto",
) -> InstanceMasks:
    """The `top_k` most probable (query, class) pairs of every image, sorted by score.

    class_logits   [B, Q, K+1]   float32, float16, bfloat16 (float64: reference), Q >= 1
    mask_logits    [B, Q, h, w]  same dtype and device
    size           (H, W) of the masks
    top_k          >= 1; k = min(top_k, Q * number of classes)
    thing_classes  only these classes of [0, K) are considered; None: all
    region         [B, 2] float32 or float64: rows and columns of the mask grid, in cells from its
                   top-left, that the unpadded image covers, 0 < r <= h; None: all of it

    A query may appear under two labels. An empty mask has score 0 and box 0. Equal probabilities
    and equal scores: the lower q * K + k first. A probability that is NaN counts as 0, and a NaN
    logit is outside the mask. Scores are float64 for float64 inputs. No gradient, no host read.
    Raises TypeError or ValueError naming the argument that is off.
    """
    sizes = checks.predictions(class_logits, mask_logits, region)
    height, width = checks.output_size(size)
    checks.at_least("top_k", top_k, 1)
    things = None
    if thing_classes is not None:
        things = checks.class_ids("thing_classes", thing_classes, sizes)
    chosen = resolve("instance_masks", backend, mask_logits.device.type, mask_logits.dtype)
    fields = _instance_masks(
        class_logits.detach(),
        mask_logits.detach(),
        height,
        width,
        int(top_k),
        things,
        region,
        chosen,
    )
    return InstanceMasks(*fields)
