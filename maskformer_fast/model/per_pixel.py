"""PerPixelBaseline: the classification of every pixel that MaskFormer is compared with."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from maskformer_fast.config import MaskFormerConfig
from maskformer_fast.model.maskformer import PixelLevelModule
from maskformer_fast.targets import VOID, Targets


class PerPixelOutput(NamedTuple):
    logits: Tensor  # [B, K, h, w]
    loss: Tensor | None = None  # scalar


class PerPixelBaseline(nn.Module):
    """The backbone and pixel decoder of a MaskFormer, and a linear classifier of its pixels."""

    def __init__(self, config: MaskFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.pixel_level = PixelLevelModule(config)
        self.classifier = nn.Conv2d(config.mask_feature_size, config.num_labels, 1)

    def forward(self, pixel_values: Tensor, targets: Targets | None = None) -> PerPixelOutput:
        """[B, 3, H, W] -> class logits at stride 4, and the loss where there are targets.

        targets  Targets in the `segments` form; mean cross entropy over the pixels not void, at
                 their size
        """
        pixel_features, _ = self.pixel_level(pixel_values)
        logits = self.classifier(pixel_features)
        if targets is None:
            return PerPixelOutput(logits)
        full = F.interpolate(logits.float(), targets.size, mode="bilinear")
        labels = semantic_labels(targets)
        total = F.cross_entropy(full, labels, ignore_index=VOID, reduction="sum")
        return PerPixelOutput(logits, total / (labels != VOID).sum().clamp(min=1))

    def semantic(self, pixel_values: Tensor) -> Tensor:
        """Class of every pixel of the images [B, 3, H, W], [B, H, W] int64."""
        size = pixel_values.shape[2:]
        return F.interpolate(self(pixel_values).logits, size, mode="bilinear").argmax(1)


def semantic_labels(targets: Targets) -> Tensor:
    """The class of every pixel, [B, H, W] int64, -1 for void, of targets in the `segments` form."""
    if targets.segments is None:
        raise ValueError("targets: expected the `segments` form, got masks")
    index = targets.segments.long().flatten(1)
    labels = F.pad(targets.labels, (0, 1), value=VOID)  # index -1 reads the last column
    spare = labels.shape[1] - 1
    found = labels.gather(1, index.where(index >= 0, spare))
    return found.view_as(targets.segments)
