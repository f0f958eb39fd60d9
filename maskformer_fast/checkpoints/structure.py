"""The sizes of a model, read off its tensors (under our names)."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from maskformer_fast.checkpoints.tables import BACKBONE


def structure(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The fields of MaskFormerConfig that the tensors show."""

    def size(name: str, dim: int = 0) -> int:
        return shape(tensors, name, source)[dim]

    in_backbone = {
        name.removeprefix(BACKBONE): tensor
        for name, tensor in tensors.items()
        if name.startswith(BACKBONE)
    }
    backbone, backbone_config = backbone_structure(in_backbone, source)
    encoder_layers = count(tensors, "pixel_level.decoder.encoder.layers.#.")
    return {
        "num_labels": size("segmentation.classifier.weight") - 1,
        "backbone": backbone,
        "backbone_config": backbone_config,
        "pixel_decoder": "transformer_fpn" if encoder_layers else "fpn",
        "feature_size": size("pixel_level.decoder.stem.conv.weight"),
        "mask_feature_size": size("pixel_level.decoder.mask_projection.weight"),
        "num_queries": size("transformer.query_embeddings.weight"),
        "hidden_size": size("transformer.query_embeddings.weight", 1),
        "feedforward_size": size("transformer.decoder.layers.0.linear1.weight"),
        "decoder_layers": count(tensors, "transformer.decoder.layers.#."),
    } | ({"encoder_layers": encoder_layers} if encoder_layers else {})


def backbone_structure(tensors: Mapping[str, Tensor], source: str) -> tuple[str, dict[str, Any]]:
    """The backbone's name and its keyword arguments, from its own tensors."""
    if "patch_embedding.conv.weight" in tensors:
        return "swin", swin_structure(tensors, source)
    if "stem.conv.weight" in tensors:
        return "resnet", resnet_structure(tensors, source)
    raise ValueError(f"{source}: expected a Swin or ResNet backbone, found the stem of neither")


def swin_structure(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    tables = [
        shape(tensors, f"stages.{stage}.0.attention.bias_table", source) for stage in range(4)
    ]  # [(2 window - 1)^2, heads]
    hidden, embed_dim = shape(tensors, "stages.0.0.linear1.weight", source)
    return {
        "embed_dim": embed_dim,
        "depths": [count(tensors, f"stages.{stage}.#.") for stage in range(4)],
        "num_heads": [heads for _, heads in tables],
        "window_size": (isqrt(tables[0][0]) + 1) // 2,
        "mlp_ratio": hidden / embed_dim,
    }


def resnet_structure(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    convs = count(tensors, "stages.0.0.convs.#.")
    if convs == 0:
        raise ValueError(f"{source}: missing the tensors that become stages.0.0.convs.*")
    last = f"convs.{convs - 1}.conv.weight"
    return {
        "depths": [count(tensors, f"stages.{stage}.#.") for stage in range(4)],
        "hidden_sizes": [
            shape(tensors, f"stages.{stage}.0.{last}", source)[0] for stage in range(4)
        ],
        "embedding_size": shape(tensors, "stem.conv.weight", source)[0],
        "layer_type": "bottleneck" if convs == 3 else "basic",
    }


def shape(tensors: Mapping[str, Tensor], name: str, source: str) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"{source}: missing the tensor that becomes {name}")
    return tuple(tensors[name].shape)


def count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many indices stand in place of `#` at the beginning of the names."""
    beginning = re.compile(r"(\d+)".join(map(re.escape, prefix.split("#"))))
    return len({m[1] for m in map(beginning.match, tensors) if m})
