"""Pixel decoders: backbone features at strides 4 to 32 -> one embedding per pixel at stride 4."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskformer_fast.model.transformer import Encoder

NORM_GROUPS = 32


class ConvNorm(nn.Module):
    """Convolution without bias, then group norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)
        nn.init.kaiming_uniform_(self.conv.weight, a=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class FPN(nn.Module):
    """Feature pyramid: from the coarsest feature up, upsample (nearest), add a lateral, convolve.

    forward: [B, channels[i], h_i, w_i] at strides 4, 8, 16, 32
             -> pixel_features [B, C, h_0, w_0] and the feature that the transformer reads.

    (Lin et al., "Feature Pyramid Networks for Object Detection", 2017.)
    """

    def __init__(self, channels: list[int], size: int, mask_size: int) -> None:
        super().__init__()
        self.stem = ConvNorm(self._stem_channels(channels, size), size, 3)
        self.laterals = nn.ModuleList(ConvNorm(c, size, 1) for c in channels[-2::-1])
        self.outputs = nn.ModuleList(ConvNorm(size, size, 3) for _ in channels[:-1])
        self.mask_projection = nn.Conv2d(size, mask_size, 3, padding=1)

    def _stem_channels(self, channels: list[int], size: int) -> int:
        return channels[-1]

    def memory(self, feature: Tensor) -> Tensor:
        """What the transformer reads, from the feature at stride 32."""
        return feature

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        layout = (
            torch.channels_last if features[0].device.type == "cpu" else torch.contiguous_format
        )
        features = [feature.contiguous(memory_format=layout) for feature in features]
        memory = self.memory(features[-1])
        x = self.stem(memory).relu_()
        finer = zip(self.laterals, self.outputs, features[-2::-1], strict=True)
        for lateral, output, feature in finer:
            x = F.interpolate(x, feature.shape[-2:], mode="nearest") + lateral(feature)
            x = output(x).relu_()
        return self.mask_projection(x), memory


class TransformerFPN(FPN):
    """An FPN on top of transformer encoder layers over the stride-32 feature."""

    def __init__(
        self,
        channels: list[int],
        size: int,
        mask_size: int,
        *,
        layers: int,
        heads: int,
        feedforward: int,
        dropout: float,
    ) -> None:
        super().__init__(channels, size, mask_size)
        self.input_projection = nn.Conv2d(channels[-1], size, 1)
        self.encoder = Encoder(layers, size, heads, feedforward, dropout)
        for parameter in self.encoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def _stem_channels(self, channels: list[int], size: int) -> int:
        return size

    def memory(self, feature: Tensor) -> Tensor:
        return self.encoder(self.input_projection(feature))
