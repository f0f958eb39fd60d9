"""Swin transformer: attention inside windows, every second block with shifted windows.

Rules: a feature map is padded to whole windows first and shifted after, so any size works; windows
start at the top left; odd sizes are padded before patch merging; every stage's output, before
merging, passes its own LayerNorm and is one feature.
Source: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskformer_fast.model.backbones.base import Backbone

PATCH_SIZE = 4
INIT_STD = 0.02
FORBIDDEN = -100.0  # added to the attention score of pixels that shifting brought together
CACHED_MASKS = 32  # four stages of eight image sizes


def missing(size: int, multiple: int) -> int:
    """What `size` lacks to a multiple. (As -size % multiple it would stall symbolic shapes.)"""
    return (size + multiple - 1) // multiple * multiple - size


def split_windows(x: Tensor, window: int) -> Tensor:
    """x [B, H, W, C], H and W multiples of `window` -> [B, windows, window * window, C]."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(b, -1, window * window, c)


def join_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of split_windows: [B, windows, window * window, C] -> [B, height, width, C]."""
    b, _, _, c = x.shape
    x = x.view(b, height // window, width // window, window, window, c).transpose(2, 3)
    return x.reshape(b, height, width, c)


def shift_mask(
    height: int, width: int, window: int, shift: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """What to add to attention scores after a cyclic shift: [windows, 1, N, N], N = window^2.

    Rows (and columns) fall in three bands: before the last window, the last window, and what the
    shift carried over from the other side. Pixels attend to pixels of their own bands only.
    """

    def band(size: int) -> Tensor:
        index = torch.arange(size, device=device)
        return (index >= size - window).long() + (index >= size - shift).long()

    region = band(height)[:, None] * 3 + band(width)  # [H, W]
    region = split_windows(region[None, :, :, None], window)[0, :, :, 0]  # [windows, N]
    apart = region[:, None, :, None] != region[:, None, None, :]
    return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill_(apart, FORBIDDEN)


@lru_cache(maxsize=CACHED_MASKS)
def cached_shift_mask(*key: int | torch.device | torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # training may use what prediction cached
        return shift_mask(*key)  # type: ignore[arg-type]


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of a window's pixels: [N, N] int64."""
    row, column = torch.arange(window * window) // window, torch.arange(window * window) % window
    rows = row[:, None] - row + window - 1
    columns = column[:, None] - column + window - 1
    return rows * (2 * window - 1) + columns


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zeroes a residual branch of whole images with probability `rate`, keeping its mean."""
    if rate == 0.0 or not training:
        return x
    keep = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device, dtype=x.dtype)
    return x * keep.bernoulli_(1 - rate).div_(1 - rate)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias per relative position."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.index = nn.Buffer(relative_position_index(window), persistent=False)
        nn.init.trunc_normal_(self.bias_table, std=INIT_STD)

    def forward(self, x: Tensor, shift: int) -> Tensor:
        """x [B, H, W, C], H and W multiples of the window -> the same shape."""
        b, h, w, c = x.shape
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
        qkv = split_windows(self.qkv(x), self.window)  # [B, windows, N, 3 C]
        windows, n = qkv.shape[1:3]
        qkv = qkv.view(b, windows, n, 3, self.heads, c // self.heads).permute(3, 0, 1, 4, 2, 5)
        bias = self.bias_table[self.index].permute(2, 0, 1)[None]  # [1, heads, N, N]
        if shift:
            make = shift_mask if torch.compiler.is_compiling() else cached_shift_mask
            bias = bias + make(h, w, self.window, shift, x.device, bias.dtype)
        # Attention kernels want four dimensions and a bias that broadcasts over the first: windows
        # go with the batch when they share the bias, with the heads when each has its own.
        rows = (b * windows, self.heads) if len(bias) == 1 else (b, windows * self.heads)
        q, k, v = qkv.reshape(3, *rows, n, c // self.heads)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.reshape(1, -1, n, n))
        x = x.view(b, windows, self.heads, n, -1).transpose(2, 3).reshape(b, windows, n, c)
        x = self.out(join_windows(x, self.window, h, w))
        return x.roll((shift, shift), dims=(1, 2)) if shift else x


class SwinBlock(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); on [B, H, W, C]."""

    def __init__(
        self, dim: int, heads: int, window: int, shifted: bool, mlp_ratio: float, drop_rate: float
    ) -> None:
        super().__init__()
        self.window, self.shift, self.drop_rate = window, window // 2 * shifted, drop_rate
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, int(mlp_ratio * dim))
        self.linear2 = nn.Linear(int(mlp_ratio * dim), dim)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        padding = (0, 0, 0, missing(w, self.window), 0, missing(h, self.window))
        padded = F.pad(self.norm1(x), padding)
        attended = self.attention(padded, self.shift)[:, :h, :w]
        x = x + drop_path(attended, self.drop_rate, self.training)
        hidden = self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return x + drop_path(hidden, self.drop_rate, self.training)


class PatchMerging(nn.Module):
    """Each 2x2 neighbourhood becomes one pixel: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 2C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, missing(w, 2), 0, missing(h, 2)))
        b, h, w, c = x.shape
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5)  # column before row
        return self.reduction(self.norm(x.reshape(b, h // 2, w // 2, 4 * c)))


class PatchEmbedding(nn.Module):
    """pixel_values [B, 3, H, W] -> [B, ceil(H/4), ceil(W/4), C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, dim, PATCH_SIZE, PATCH_SIZE)
        self.norm = nn.LayerNorm(dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        h, w = pixel_values.shape[-2:]
        padded = F.pad(pixel_values, (0, missing(w, PATCH_SIZE), 0, missing(h, PATCH_SIZE)))
        return self.norm(self.conv(padded).permute(0, 2, 3, 1))


class Swin(Backbone):
    """Swin backbone; the defaults are Swin-T. One entry of `depths` and `num_heads` per stage."""

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.3,
    ) -> None:
        super().__init__()
        if len(depths) != 4 or len(num_heads) != 4:
            raise ValueError(
                "Swin: depths and num_heads must have 4 entries, "
                f"got {tuple(depths)} and {tuple(num_heads)}"
            )
        self.channels = [embed_dim * 2**stage for stage in range(4)]
        for dim, heads in zip(self.channels, num_heads, strict=True):
            if dim % heads:
                raise ValueError(
                    f"Swin: num_heads must divide the stage's width {dim}, got {heads}"
                )
        drop_rates = torch.linspace(0, drop_path_rate, sum(depths)).split(list(depths))
        self.patch_embedding = PatchEmbedding(embed_dim)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    SwinBlock(dim, heads, window_size, i % 2 == 1, mlp_ratio, rate)
                    for i, rate in enumerate(rates.tolist())
                )
            )
            for dim, heads, rates in zip(self.channels, num_heads, drop_rates, strict=True)
        )
        self.merges = nn.ModuleList(PatchMerging(dim) for dim in self.channels[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in self.channels)
        self.apply(init_linear)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """pixel_values [B, 3, H, W] -> features [B, channels[i], ~H/4/2^i, ~W/4/2^i]."""
        x = self.patch_embedding(pixel_values)
        features = []
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            if i > 0:
                x = self.merges[i - 1](x)
            x = stage(x)
            features.append(norm(x).permute(0, 3, 1, 2).contiguous())
        return features


def init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
