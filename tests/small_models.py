"""A configuration small enough for tests, and batches that fit it."""

from typing import Any

import torch
from op_cases import random_targets
from torch import Tensor

from maskformer_fast import MaskFormerConfig, Targets

CLASSES = 4
SMALL_SWIN = {  # changes of `small_config`
    "backbone": "swin",
    "backbone_config": {
        "embed_dim": 8,
        "depths": [2, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
    },
}
MODELS = {  # the same, of both kinds of backbone and of pixel decoder
    "resnet, fpn": {},
    "swin, transformer_fpn": {**SMALL_SWIN, "pixel_decoder": "transformer_fpn"},
}


def without_drop_path(changes: dict[str, Any]) -> dict[str, Any]:
    """The same model without random numbers of its own, besides dropout."""
    if "backbone" not in changes:
        return changes
    return {**changes, "backbone_config": {**changes["backbone_config"], "drop_path_rate": 0.0}}


def small_config(**changes) -> MaskFormerConfig:
    values = {
        "num_labels": CLASSES,
        "thing_classes": [2, 3],
        "backbone": "resnet",
        "backbone_config": {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 8, 16, 16],
            "embedding_size": 8,
            "layer_type": "basic",
        },
        "feature_size": 32,
        "mask_feature_size": 16,
        "num_queries": 6,
        "hidden_size": 16,
        "num_heads": 2,
        "feedforward_size": 32,
        "decoder_layers": 3,
        "encoder_layers": 1,
        "dropout": 0.0,
        "short_side": 64,
        "long_side": 128,
    }
    return MaskFormerConfig(**(values | changes))


def small_batch(
    counts: list[int], size: tuple[int, int] = (64, 64), *, masks: bool = False
) -> tuple[Tensor, Targets]:
    """Images [B, 3, H, W] and targets in the `segments` form, or as masks that overlap."""
    pixel_values = torch.randn(len(counts), 3, *size, generator=torch.Generator().manual_seed(0))
    return pixel_values, random_targets(counts, size, num_classes=CLASSES, masks=masks)
