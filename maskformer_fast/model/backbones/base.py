"""What every backbone is."""

from torch import nn


class Backbone(nn.Module):
    """Maps pixel_values [B, 3, H, W] to four features at strides 4, 8, 16 and 32.

    `channels` are the features' widths. H and W are free.
    """

    channels: list[int]
