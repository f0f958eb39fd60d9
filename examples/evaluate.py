"""Panoptic quality and mean IoU of a model on a panoptic data set, by torchmetrics.

    python examples/evaluate.py --weights runs/shapes --data scenes [--split val]

DATA is in COCO panoptic format, as examples/train.py takes it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.detection import PanopticQuality
from tqdm import tqdm

from maskformer_fast import MaskFormer, PerPixelBaseline
from maskformer_fast.data import transforms
from maskformer_fast.data.coco_panoptic import CocoPanoptic
from maskformer_fast.post_process import (
    post_process_panoptic_segmentation,
    post_process_semantic_segmentation,
)

VOID = -1


def evaluate(model: MaskFormer | PerPixelBaseline, dataset: CocoPanoptic) -> dict[str, float]:
    """mIoU, and for a MaskFormer PQ with its factors SQ and RQ, over all images of `dataset`.

    Every image is predicted alone at its own size, with the defaults of post_process.py. Void and
    crowd pixels are not counted.
    """
    num_labels = model.config.num_labels
    iou = MulticlassJaccardIndex(num_labels, ignore_index=VOID)
    quality = panoptic_quality(num_labels, dataset.thing_classes)
    for semantic, panoptic, labels, instances in predictions(model, dataset):
        iou.update(semantic[None], labels[None])
        if panoptic is not None:
            quality.update(panoptic[None], torch.stack([labels, instances], dim=2)[None])
    figures = {"images": len(dataset), "miou": iou.compute().item()}
    if isinstance(model, MaskFormer):
        figures |= mean_over_classes(quality, num_labels)
    return figures


def panoptic_quality(num_labels: int, thing_classes: Collection[int]) -> PanopticQuality:
    """The metric, with predicted void as a class of its own, `num_labels`.

    torchmetrics would leave truth that lies under predicted void out of the count, as it does
    with predictions over void in the truth; predicting nothing must not be free.
    """
    things = set(thing_classes)
    stuff = set(range(num_labels + 1)) - things
    return PanopticQuality(things, stuff, return_sq_and_rq=True, return_per_class=True)


def mean_over_classes(quality: PanopticQuality, num_labels: int) -> dict[str, float]:
    """PQ, SQ and RQ: means over the classes that occur in the truth or in a prediction."""
    column = [quality.cat_id_to_continuous_id[label] for label in range(num_labels)]
    seen = quality.true_positives + quality.false_positives + quality.false_negatives > 0
    figures = quality.compute()[column][seen[column]].mean(0)
    return dict(zip(("pq", "sq", "rq"), figures.tolist(), strict=True))


@torch.inference_mode()
def predictions(
    model: MaskFormer | PerPixelBaseline, dataset: CocoPanoptic
) -> Iterator[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
    """Of each image: predicted classes [H, W] and (class, segment) pairs [H, W, 2], then the truth:
    classes [H, W] with -1 for void, and segments [H, W]."""
    device = next(model.parameters()).device
    config = model.config
    for sample in tqdm(dataset, disable=None, desc="evaluate"):
        batch = transforms.collate(
            [sample], mean=config.image_mean, std=config.image_std, size_divisor=config.size_divisor
        )
        size = tuple(sample.segments.shape)
        pixel_values = batch["pixel_values"].to(device)
        if isinstance(model, MaskFormer):
            output = model(pixel_values, pixel_mask=batch["pixel_mask"].to(device))
            [semantic] = post_process_semantic_segmentation(output, target_sizes=[size])
            [result] = post_process_panoptic_segmentation(output, target_sizes=[size])
            panoptic = with_labels(result, config.num_labels)
        else:
            semantic, panoptic = model.semantic(pixel_values)[0, : size[0], : size[1]], None
        index = sample.segments.long()
        labels = torch.cat([sample.labels, torch.tensor([VOID])])[index]  # index -1 is the last
        yield semantic.cpu(), panoptic, labels, index


def with_labels(result: dict, num_labels: int) -> Tensor:
    """A panoptic result as [H, W, 2]: class (`num_labels` for void) and segment id."""
    segments = result["segmentation"].cpu()
    label_of = torch.full((int(segments.max()) + 1,), num_labels)
    for info in result["segments_info"]:
        label_of[info["id"]] = info["label_id"]
    return torch.stack([label_of[segments.long()], segments.long()], dim=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", required=True, help="folder or hub id")
    parser.add_argument("--data", type=Path, required=True, help="folder in COCO panoptic format")
    parser.add_argument("--split", default="val")
    arguments = parser.parse_args()
    model = MaskFormer.from_pretrained(arguments.weights)
    print(json.dumps(evaluate(model, CocoPanoptic.from_split(arguments.data, arguments.split))))


if __name__ == "__main__":
    main()
