"""Pixel decoders: backbone features at strides 4 to 32 -> one embedding per pixel at stride 4."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskformer_fast.model.transformer import Encoder

NORM_GROUPS = 32


class MaskProjection(NamedTuple):
    """The last convolution, not computed: pixel_features = conv(x, weight) + bias.

    It is linear, and so are the masks in it. With fewer queries than channels they take less work
    from x at once, by one filter for each query of an image:

        mask_queries . conv(x, weight) = conv(x, mask_queries . weight)

    It is computed in the dtype of x, that of the forward pass, whatever autocast says when the
    result is read.
    """

    x: Tensor  # [B, D, h, w]
    weight: Tensor  # [C, D, 3, 3]
    bias: Tensor  # [C]

    @classmethod
    def of(cls, conv: nn.Conv2d, x: Tensor) -> MaskProjection:
        assert conv.bias is not None
        # Copies, so that a result read late does not change with the model's weights.
        return cls(x, conv.weight.to(x.dtype, copy=True), conv.bias.to(x.dtype, copy=True))

    @property
    def shape(self) -> torch.Size:
        """That of pixel_features."""
        return torch.Size((len(self.x), len(self.weight), *self.x.shape[2:]))

    def pixel_features(self) -> Tensor:
        """[B, C, h, w]"""
        with torch.autocast(self.x.device.type, enabled=False):
            return F.conv2d(self.x, self.weight, self.bias, padding=1)

    def mask_logits(self, mask_queries: Tensor) -> Tensor:
        """mask_queries [B, Q, C], B >= 1 -> [B, Q, h, w], in their dtype."""
        with torch.autocast(self.x.device.type, enabled=False):
            queries = mask_queries.to(self.x.dtype)
            filters = (queries @ self.weight.flatten(1)).unflatten(2, self.weight.shape[1:])
            images = zip(self.x.split(1), filters, queries @ self.bias, strict=True)
            logits = [F.conv2d(x, weight, bias, padding=1) for x, weight, bias in images]
            return torch.cat(logits).to(mask_queries.dtype).contiguous()


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
             -> pixel_features [B, C, h_0, w_0], or with `project` False what is left to do for
                them, and the feature that the transformer reads.

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

    def forward(
        self, features: list[Tensor], project: bool = True
    ) -> tuple[Tensor | MaskProjection, Tensor]:
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
        if not project:
            return MaskProjection.of(self.mask_projection, x), memory
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
