"""The peers: what users have today. Every function prepares a call outside of its time.

A function takes the inputs of a case and returns an Entrant whose call does what ours does, from
tensors in the form the peer wants. It raises ImportError where the peer is not installed, and
Unavailable where it has no such thing. `torch` is the step written down in plain PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from measure import Entrant
from race import Unavailable
from torch import Tensor

from maskformer_fast import Targets
from maskformer_fast.criterion import ALPHA, GAMMA
from maskformer_fast.ops import InstanceMasks
from maskformer_fast.ops.linear_assignment import reference as scipy_assignment
from maskformer_fast.ops.matching_cost import reference_from_logits

try:
    import torchvision  # noqa: F401
except Exception:  # absent, or built for another torch: transformers must not try it either
    sys.modules["torchvision"] = None  # type: ignore[assignment]

WEIGHTS = {"class_weight": 1.0, "mask_weight": 20.0, "dice_weight": 1.0}
LOSS_WEIGHTS = {"loss_cross_entropy": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
NO_OBJECT_WEIGHT = 0.1
Size = tuple[int, int]
TrainingStep = Callable[..., Callable[[], tuple[Tensor, Tensor]]]


def compiled(make: Callable[..., Entrant]) -> Callable[..., Entrant]:
    """The peer that `make` prepares, under torch.compile."""

    def prepare(*inputs: Any) -> Entrant:
        entrant = make(*inputs)
        return entrant._replace(call=torch.compile(entrant.call, dynamic=False))

    return prepare


# --- matching ---------------------------------------------------------------------------------


def transformers_matching(class_logits: Tensor, mask_logits: Tensor, targets: Targets) -> Entrant:
    matcher = _matcher()
    masks, labels = _as_lists(targets)

    def as_ours(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        query_of_target = torch.full_like(targets.labels, -1)
        for row, (queries, matched) in zip(query_of_target, pairs, strict=True):
            row[matched] = queries.to(row.device)
        return query_of_target

    return Entrant(lambda: matcher(mask_logits, class_logits, masks, labels), as_ours)


def compiled_matching(class_logits: Tensor, mask_logits: Tensor, targets: Targets) -> Entrant:
    """The reference's cost under torch.compile, then SciPy."""
    cost = torch.compile(reference_from_logits, dynamic=False)
    parts = (targets.labels, targets.num_targets, targets.pixels)
    weights = (*WEIGHTS.values(), ALPHA, GAMMA, False)
    return Entrant(
        lambda: scipy_assignment(
            cost(class_logits, mask_logits, *parts, *weights), targets.num_targets
        )[0]
    )


def transformers_matching_cost(
    class_logits: Tensor, mask_queries: Tensor, pixel_features: Tensor, targets: Targets
) -> Entrant:
    """What its matcher does before SciPy, for every layer and image."""
    from transformers.models.maskformer import modeling_maskformer as maskformer

    masks, labels = _as_lists(targets)
    grid = pixel_features.shape[2:]

    def of_image(class_logits: Tensor, x: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
        y = F.interpolate(masks[:, None], size=grid, mode="nearest").flatten(1).to(x.dtype)
        parts = (
            -class_logits.softmax(-1)[:, labels],
            maskformer.pair_wise_sigmoid_focal_loss(x.flatten(1), y),
            maskformer.pair_wise_dice_loss(x.flatten(1), y),
        )
        return sum(w * part for w, part in zip(WEIGHTS.values(), parts, strict=True)).T

    def call() -> Tensor:
        layers = []
        for logits, queries in zip(class_logits, mask_queries, strict=True):
            masks_of_layer = torch.einsum("bqc,bchw->bqhw", queries, pixel_features)
            images = zip(logits, masks_of_layer, masks, labels, strict=True)
            layers.append(torch.stack([of_image(*image) for image in images]))
        return torch.stack(layers)

    return Entrant(call)


# --- losses -----------------------------------------------------------------------------------


def transformers_criterion(
    class_logits: Tensor, mask_queries: Tensor, pixel_features: Tensor, targets: Targets
) -> Entrant:
    """All layers as its model does it: the last one, and the others as auxiliary predictions."""
    from transformers.models.maskformer.modeling_maskformer import MaskFormerLoss

    num_labels = class_logits.shape[-1] - 1
    criterion = MaskFormerLoss(num_labels, _matcher(), LOSS_WEIGHTS, NO_OBJECT_WEIGHT)
    criterion.to(class_logits.device)
    masks, labels = _as_lists(targets)
    inputs = (class_logits, mask_queries, pixel_features)
    dtype = class_logits.dtype
    autocast = torch.autocast(class_logits.device.type, dtype, enabled=dtype != torch.float32)

    def call() -> tuple[Tensor, ...]:
        layers = [
            {
                "masks_queries_logits": torch.einsum("bqc,bchw->bqhw", queries, pixel_features),
                "class_queries_logits": logits,
            }
            for logits, queries in zip(class_logits, mask_queries, strict=True)
        ]
        with autocast:  # half inputs meet float32 masks
            losses = criterion(*layers[-1].values(), masks, labels, layers[:-1])
        total = sum(
            weight * loss
            for name, loss in losses.items()
            for prefix, weight in LOSS_WEIGHTS.items()
            if name.startswith(prefix)
        )
        return total, *torch.autograd.grad(total, inputs)

    return Entrant(call)


def torch_mask_loss(mask_logits: Tensor, targets: Targets) -> Entrant:
    """Forward and backward of the matched masks [N, T, h, w], all at their full size."""
    index = torch.arange(mask_logits.shape[1], device=mask_logits.device)[:, None, None]

    def call() -> tuple[Tensor, Tensor, Tensor]:
        repeats = len(mask_logits) // len(targets.pixels)
        y = (targets.pixels[:, None] == index).float().repeat(repeats, 1, 1, 1)
        x = _upsample(mask_logits, targets.size)
        s = x.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(x, y, reduction="none")
        other = s * (1 - y) + (1 - s) * y
        weight = ALPHA * y + (1 - ALPHA) * (1 - y)
        focal = (weight * other**GAMMA * entropy).mean((2, 3))
        overlap, area = (y * s).sum((2, 3)), s.sum((2, 3)) + y.sum((2, 3))
        dice = 1 - (2 * overlap + 1) / (area + 1)
        return focal, dice, *torch.autograd.grad(focal.sum() + dice.sum(), mask_logits)

    return Entrant(call)


# --- assignment -------------------------------------------------------------------------------


def scipy(cost: Tensor) -> Entrant:
    from scipy.optimize import linear_sum_assignment

    def call() -> list[Any]:
        return [linear_sum_assignment(problem) for problem in cost.cpu().numpy()]

    return Entrant(call, lambda pairs: _stack([columns for _, columns in pairs], cost))


def lapx(cost: Tensor) -> Entrant:
    """Its fastest batch call on these problems."""
    import lap

    threads = torch.get_num_threads()

    def call() -> Any:
        matrices = cost.cpu().numpy()
        return lap.lapjvr_batch(matrices, extend_cost=True, return_cost=False, n_threads=threads)

    return Entrant(call, lambda result: _stack(result[1], cost))


def torch_linear_assignment(cost: Tensor) -> Entrant:
    from torch_linear_assignment import batch_linear_assignment

    if cost.device.type != "cuda":
        raise Unavailable("on the CPU it calls SciPy")
    return Entrant(lambda: batch_linear_assignment(cost))


# --- maps of one image ------------------------------------------------------------------------


def torch_mask_logits(mask_queries: Tensor, pixel_features: Tensor, sigmoid: bool) -> Entrant:
    def call() -> Tensor:
        logits = torch.einsum("bqc,bchw->bqhw", mask_queries, pixel_features)
        return logits.sigmoid() if sigmoid else logits

    return Entrant(call)


def transformers_semantic_map(
    class_logits: Tensor, mask_logits: Tensor, size: Size, order: str
) -> Entrant:
    process = _processor().post_process_semantic_segmentation
    if order != "transformers":
        raise Unavailable("it has the order 'transformers' only")
    outputs = _outputs(class_logits, mask_logits)
    return Entrant(lambda: process(outputs, [size])[0][None])


def torch_semantic_map(
    class_logits: Tensor, mask_logits: Tensor, size: Size, order: str
) -> Entrant:
    def call() -> Tensor:
        probs = class_logits.softmax(-1)[..., :-1]
        if order == "transformers":
            scores = torch.einsum("bqk,bqhw->bkhw", probs, mask_logits.sigmoid())
            return _upsample(scores, size).argmax(1)
        masks = _upsample(mask_logits, size).sigmoid()
        return torch.einsum("bqk,bqhw->bkhw", probs, masks).argmax(1)

    return Entrant(call)


def transformers_panoptic_map(
    class_logits: Tensor, mask_logits: Tensor, size: Size, options: dict[str, Any]
) -> Entrant:
    process = _processor().post_process_panoptic_segmentation
    if options["dialect"] != "transformers":
        raise Unavailable("it has the dialect 'transformers' only")
    outputs = _outputs(class_logits, mask_logits)
    thresholds = [options[f"{name}_threshold"] for name in ("score", "mask", "overlap")]
    stuff = set(range(class_logits.shape[-1] - 1)) - set(options["thing_classes"])
    return Entrant(
        lambda: process(outputs, *thresholds, stuff, [size])[0]["segmentation"][None].int()
    )


def torch_panoptic_map(
    class_logits: Tensor, mask_logits: Tensor, size: Size, options: dict[str, Any]
) -> Entrant:
    """The published rules, one segment after the other."""
    if options["dialect"] != "maskformer":
        raise Unavailable("written for the dialect 'maskformer' only")
    things, no_object = set(options["thing_classes"]), class_logits.shape[-1] - 1

    def call() -> Tensor:
        score, label = class_logits[0].softmax(-1).max(-1)
        kept = (label != no_object) & (score > options["score_threshold"])
        probs = _upsample(mask_logits[:, kept], size)[0].sigmoid()
        winner = (score[kept, None, None] * probs).argmax(0)
        segments = torch.zeros(size, dtype=torch.int32, device=probs.device)
        id_of_stuff: dict[int, int] = {}
        count = 0
        for query, name in enumerate(label[kept].tolist()):
            won = winner == query
            area = won.sum().item()
            original = (probs[query] >= options["mask_threshold"]).sum().item()
            if 0 in (area, original) or area / original < options["overlap_threshold"]:
                continue
            if name in things or name not in id_of_stuff:
                count += 1
                id_of_stuff[name] = count
            segments[won] = id_of_stuff[name]
        return segments[None]

    return Entrant(call)


def transformers_instance_masks(class_logits: Tensor, mask_logits: Tensor, size: Size) -> Entrant:
    """As many pairs as queries. Scores are those of the grid, and masks its nearest cells."""
    process = _processor().post_process_instance_segmentation
    outputs = _outputs(class_logits, mask_logits)

    def as_ours(results: list[dict[str, Any]]) -> Tensor:
        return torch.tensor([info["score"] for info in results[0]["segments_info"]])

    options = {"threshold": 0.0, "target_sizes": [size], "return_binary_maps": True}
    return Entrant(lambda: process(outputs, **options), as_ours)


def torch_instance_masks(class_logits: Tensor, mask_logits: Tensor, size: Size) -> Entrant:
    def call() -> InstanceMasks:
        probs = class_logits[0].softmax(-1)[:, :-1]
        score, pairs = probs.flatten().topk(len(probs))
        logits = _upsample(mask_logits[:, pairs // probs.shape[1]], size)[0]
        masks = logits > 0
        score = score * (logits.sigmoid() * masks).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1)
        score, order = score.sort(descending=True)
        masks = masks[order]
        boxes = torch.zeros(len(masks), 4, dtype=torch.int32, device=masks.device)
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
            if len(rows):
                edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                box[:] = torch.stack(edges)
        labels = (pairs % probs.shape[1])[order]
        return InstanceMasks(*(part[None] for part in (score, labels, masks, boxes)))

    return Entrant(call)


# --- whole model ------------------------------------------------------------------------------


def transformers_model(num_labels: int, auxiliary: bool) -> Any:
    """Swin-T MaskFormer without dropout, so that both sides compute the same."""
    from transformers import MaskFormerConfig, MaskFormerForInstanceSegmentation
    from transformers.models.maskformer.configuration_maskformer import MaskFormerDetrConfig
    from transformers.models.maskformer.configuration_maskformer_swin import MaskFormerSwinConfig

    stages = [f"stage{i}" for i in range(1, 5)]
    config = MaskFormerConfig(
        backbone_config=MaskFormerSwinConfig(out_features=stages, drop_path_rate=0.0),
        decoder_config=MaskFormerDetrConfig(dropout=0.0),
        num_labels=num_labels,
        use_auxiliary_loss=auxiliary,
        output_hidden_states=auxiliary,  # without them the auxiliary loss fails
    )
    return MaskFormerForInstanceSegmentation(config)


def transformers_inference(model: Any, pixel_values: Tensor, options: dict[str, Any]) -> Entrant:
    """From the image to panoptic segments."""
    process = _processor().post_process_panoptic_segmentation
    size = tuple(pixel_values.shape[2:])

    @torch.inference_mode()
    def call() -> Tensor:
        [result] = process(model(pixel_values), **options, target_sizes=[size])
        return result["segmentation"][None].int()

    return Entrant(call)


def transformers_training_step(
    model: Any, pixel_values: Tensor, targets: Targets, step: TrainingStep
) -> Entrant:
    """Forward, loss, backward and optimizer; its losses are other ones, its logits the same."""
    _matcher()  # raises where transformers is not installed, and there is no model
    masks, labels = _as_lists(targets)
    call = step(model, forward=lambda: model(pixel_values, masks, labels))
    return Entrant(call, lambda result: result[:1])


# --- shared -----------------------------------------------------------------------------------


def _matcher() -> Any:
    from transformers.models.maskformer.modeling_maskformer import MaskFormerHungarianMatcher

    names = {"class_weight": "cost_class", "mask_weight": "cost_mask", "dice_weight": "cost_dice"}
    return MaskFormerHungarianMatcher(**{names[name]: value for name, value in WEIGHTS.items()})


def _processor() -> Any:
    from transformers.models.maskformer.image_processing_pil_maskformer import (
        MaskFormerImageProcessorPil,
    )

    return MaskFormerImageProcessorPil()


def _outputs(class_logits: Tensor, mask_logits: Tensor) -> SimpleNamespace:
    return SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=mask_logits)


def _as_lists(targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
    """Masks [T, H, W] in float32 and labels [T] of each image, as transformers takes them."""
    index = torch.arange(targets.labels.shape[1], device=targets.labels.device)[:, None, None]
    return [(pixels == index).float() for pixels in targets.pixels], list(targets.labels)


def _upsample(x: Tensor, size: Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _stack(columns: Any, cost: Tensor) -> Tensor:
    return torch.stack([torch.as_tensor(c) for c in columns]).to(cost.device, torch.int64)
