"""Weights and configurations as transformers' MaskFormer, Swin and ResNet save them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskformer_fast.checkpoints.report import translate
from maskformer_fast.checkpoints.structure import backbone_structure, structure
from maskformer_fast.checkpoints.tables import TRANSFORMERS, TRANSFORMERS_IMAGENET
from maskformer_fast.config import MaskFormerConfig

REQUIRED = {  # options of transformers' configurations for which only this value is built here
    "use_absolute_embeddings": False,
    "patch_size": 4,
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
    "position_embedding_type": "sine",
    "activation_function": "relu",
    "layer_norm_eps": 1e-5,
    "qkv_bias": True,
}
ACTIVATION = {"resnet": "relu"}  # hidden_act by model type; the others: gelu
LOSS_WEIGHTS = {  # ours: theirs
    "no_object_weight": "no_object_weight",
    "class_weight": "cross_entropy_weight",
    "mask_weight": "mask_weight",
    "dice_weight": "dice_weight",
}


def check_options(config: Mapping[str, Any], source: str) -> None:
    """Refuse options of a model or backbone for which only one value is built here."""
    model_type = config.get("model_type")
    activation = {"hidden_act": ACTIVATION.get(str(model_type), "gelu")}
    for option, required in (REQUIRED | activation).items():
        if config.get(option, required) != required:
            raise ValueError(f"{source}: {option} must be {required}, got {config[option]}")


def image_settings(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of MaskFormerConfig out of an image processor's configuration, old or new."""
    size = processor.get("size")
    if isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": processor.get("max_size")}
    size = size or {}
    settings = {
        "image_mean": processor.get("image_mean"),
        "image_std": processor.get("image_std"),
        "size_divisor": processor.get("size_divisor", processor.get("size_divisibility")),
        "short_side": size.get("shortest_edge"),
        "long_side": size.get("longest_edge"),
    }
    return {name: value for name, value in settings.items() if value}


def from_transformers(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    source: str = "checkpoint",
    processor: Mapping[str, Any] | None = None,
) -> tuple[MaskFormerConfig, dict[str, Tensor]]:
    """transformers' config.json and tensors -> our configuration and tensors.

    Sizes come from the tensors; `config` and the image processor's `processor` supply what tensors
    do not show.
    Errors: ValueError for names that no rule knows and options that are not built here.
    """
    backbone, decoder = config.get("backbone_config") or {}, config.get("decoder_config") or {}
    check_options(backbone, source)
    check_options(decoder, source)
    ours = translate(tensors, TRANSFORMERS, source)
    fields = structure(ours, source)
    if fields["backbone"] == "swin" and "drop_path_rate" in backbone:
        fields["backbone_config"]["drop_path_rate"] = backbone["drop_path_rate"]
    fields["num_heads"] = decoder.get("decoder_attention_heads", 8)
    fields["dropout"] = decoder.get("dropout", 0.1)
    fields["id2label"] = {int(i): label for i, label in config.get("id2label", {}).items()}
    fields |= {ours: config[theirs] for ours, theirs in LOSS_WEIGHTS.items() if theirs in config}
    return MaskFormerConfig(**(fields | image_settings(processor or {}))), ours


def imagenet_backbone(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str = "checkpoint"
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """A Swin or ResNet classifier of transformers -> backbone name, its configuration, tensors.

    Swin's norms of the stages' outputs are no part of a classifier: they start as identities.
    """
    name = str(config.get("model_type"))
    if name not in TRANSFORMERS_IMAGENET:
        raise ValueError(
            f"{source}: model_type must be one of {sorted(TRANSFORMERS_IMAGENET)}, got {name!r}"
        )
    check_options(config, source)
    ours = translate(tensors, TRANSFORMERS_IMAGENET[name], source)
    _, backbone_config = backbone_structure(ours, source)
    if name == "swin":
        for stage in range(4):
            width = backbone_config["embed_dim"] * 2**stage
            ours[f"norms.{stage}.weight"] = torch.ones(width)
            ours[f"norms.{stage}.bias"] = torch.zeros(width)
    return name, backbone_config, ours
