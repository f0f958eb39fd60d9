"""Any timm model with features at strides 4, 8, 16 and 32, as a backbone (extra `timm`)."""

from importlib import import_module
from typing import Any

from torch import Tensor

from maskformer_fast.model.backbones.base import Backbone

STRIDES = [4, 8, 16, 32]


class TimmBackbone(Backbone):
    """timm's `create_model(name, features_only=True, **config)`; weights are random unless
    `config` says `pretrained=True`."""

    def __init__(self, name: str, **config: Any) -> None:
        super().__init__()
        try:
            timm = import_module("timm")
        except Exception as error:  # a timm that is there may still fail, e.g. on its torchvision
            raise ValueError(
                f"backbone {name!r} is neither 'swin' nor 'resnet', and timm, where other names "
                f"are looked up, does not import ({type(error).__name__}: {error}); "
                "pip install maskformer-fast[timm]"
            ) from error
        if not timm.is_model(name):
            raise ValueError(f"backbone: expected 'swin', 'resnet' or a timm model, got {name!r}")
        self.model = timm.create_model(name, features_only=True, **config)
        info = self.model.feature_info
        strides = info.reduction()
        self.levels = [i for i, stride in enumerate(strides) if stride in STRIDES]
        if [strides[i] for i in self.levels] != STRIDES:
            raise ValueError(
                f"backbone {name!r} must have features at strides {STRIDES}, got {strides}"
            )
        self.channels = [info.channels(i) for i in self.levels]
        self.channels_last = getattr(self.model, "output_fmt", None) == "NHWC"

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """pixel_values [B, 3, H, W] -> features [B, channels[i], ~H/4/2^i, ~W/4/2^i]."""
        features = self.model(pixel_values)
        features = [features[i] for i in self.levels]
        return [f.permute(0, 3, 1, 2) for f in features] if self.channels_last else features
