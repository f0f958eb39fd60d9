"""ResNet as a feature pyramid: residual stages at strides 4, 8, 16 and 32.

Bottleneck blocks stride in their 3x3 convolution, as torchvision's and the published MaskFormer
weights do. Published models keep the ImageNet statistics of every norm frozen.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskformer_fast.model.backbones.base import Backbone


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization with fixed statistics and affine: y = x * scale + shift per channel.

    All four tensors are buffers: they are saved and moved with the model, and never trained.
    """

    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.ones(channels))
        self.bias = nn.Buffer(torch.zeros(channels))
        self.running_mean = nn.Buffer(torch.zeros(channels))
        self.running_var = nn.Buffer(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        # addcmul keeps no activation for the backward pass; F.batch_norm would keep x.
        return torch.addcmul(
            shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None]
        )  # [B, C, H, W]


NORMS: dict[str, type[nn.Module]] = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d}


class ConvNorm(nn.Module):
    """A convolution without bias, padded to keep the size at stride 1, and its norm."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, norm: str
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False
        )
        self.norm = NORMS[norm](out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ResidualBlock(nn.Module):
    """relu(convs(x) + shortcut(x)): two 3x3 convolutions ("basic"), or 1x1, 3x3, 1x1
    with a quarter of the width inside ("bottleneck")."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, layer_type: str, norm: str
    ) -> None:
        super().__init__()
        inner = out_channels // 4
        plan = {  # in, out, kernel, stride
            "basic": [(in_channels, out_channels, 3, stride), (out_channels, out_channels, 3, 1)],
            "bottleneck": [
                (in_channels, inner, 1, 1),
                (inner, inner, 3, stride),
                (inner, out_channels, 1, 1),
            ],
        }[layer_type]
        self.convs = nn.ModuleList(ConvNorm(*conv, norm=norm) for conv in plan)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs[:-1]:
            y = F.relu(conv(y), inplace=True)
        return F.relu(self.convs[-1](y) + self.shortcut(x), inplace=True)


class ResNet(Backbone):
    """Residual network whose stages' outputs are the features.

    `depths` blocks and `hidden_sizes` channels per stage; the defaults are ResNet-50,
    depths (3, 4, 23, 3) are ResNet-101. `norm` is "frozen" or "batch" (training from scratch).
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        hidden_sizes: Sequence[int] = (256, 512, 1024, 2048),
        embedding_size: int = 64,
        layer_type: str = "bottleneck",
        norm: str = "frozen",
    ) -> None:
        super().__init__()
        if len(depths) != 4 or len(hidden_sizes) != 4:
            raise ValueError(
                "ResNet: depths and hidden_sizes must have 4 entries, "
                f"got {tuple(depths)} and {tuple(hidden_sizes)}"
            )
        if layer_type not in ("basic", "bottleneck"):
            raise ValueError(
                f"ResNet: layer_type must be 'basic' or 'bottleneck', got {layer_type!r}"
            )
        if norm not in NORMS:
            raise ValueError(f"ResNet: norm must be one of {sorted(NORMS)}, got {norm!r}")
        self.channels = list(hidden_sizes)
        self.stem = ConvNorm(3, embedding_size, 7, 2, norm)
        widths = [embedding_size, *hidden_sizes]
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(depths):
            stride = 1 if stage == 0 else 2
            blocks = [ResidualBlock(widths[stage], widths[stage + 1], stride, layer_type, norm)]
            blocks += [
                ResidualBlock(widths[stage + 1], widths[stage + 1], 1, layer_type, norm)
                for _ in range(depth - 1)
            ]
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """pixel_values [B, 3, H, W] -> features [B, channels[i], ~H/4/2^i, ~W/4/2^i]."""
        x = F.relu(self.stem(pixel_values), inplace=True)
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
