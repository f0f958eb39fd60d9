"""Backbones: from images to features at strides 4, 8, 16 and 32."""

from typing import Any

from maskformer_fast.model.backbones.base import Backbone
from maskformer_fast.model.backbones.resnet import ResNet
from maskformer_fast.model.backbones.swin import Swin
from maskformer_fast.model.backbones.timm import TimmBackbone

OWN_BACKBONES: dict[str, type[Backbone]] = {"resnet": ResNet, "swin": Swin}


def build_backbone(name: str, config: dict[str, Any]) -> Backbone:
    """The backbone `name`: "swin", "resnet", or else a model of timm.

    `config` holds keyword arguments of the backbone's class, or of timm's create_model.
    """
    if name in OWN_BACKBONES:
        return OWN_BACKBONES[name](**config)
    return TimmBackbone(name, **config)


__all__ = ["Backbone", "build_backbone"]
