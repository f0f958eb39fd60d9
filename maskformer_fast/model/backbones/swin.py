"""Swin transformer: attention inside windows, every second block with shifted windows.

Rules: a feature map is padded to whole windows first and shifted after, so any size works; windows
start at the top left; odd sizes are padded before patch merging; every stage's output, before
merging, passes its own LayerNorm and is one feature.
Source: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskformer_fast.model.backbones.base import Backbone

PATCH_SIZE = 4
INIT_STD = 0.02
FORBIDDEN = -100.0  # added to the attention score of pixels that shifting brought together
CACHED_SIZES = 16  # four stages, shifted or not, of two image sizes


def missing(size: int, multiple: int) -> int:
    """What `size` lacks to a multiple. (As -size % multiple it would stall symbolic shapes.)"""
    return (size + multiple - 1) // multiple * multiple - size


def split_windows(x: Tensor, window: int) -> Tensor:
    """x [B, H, W, C], H and W multiples of `window` -> [B, windows, window * window, C]."""
    b, h, w, c = x.shape
    rows, columns = h // window, w // window
    x = x.view(b, rows, window, columns, window, c).transpose(2, 3)
    return x.reshape(b, rows * columns, window * window, c)


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


def window_rows(
    batch: int, height: int, width: int, window: int, shift: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where pixels go when images are padded, shifted and split into windows; and where from.

    Returns the row of [B * H * W] pixels that each place in a window takes, row B * H * W where it
    is padding, and the place of each pixel: [B * windows * N] and [B * H * W], int64.
    """
    rows, columns = height + missing(height, window), width + missing(width, window)
    image = torch.arange(batch, device=device)[:, None, None]
    pixels = torch.arange(height * width, device=device).view(1, height, width)
    pixels = pixels + image * (height * width)  # [B, H, W]
    padding = (0, columns - width, 0, rows - height)
    taken = F.pad(pixels, padding, value=batch * height * width)
    taken = split_windows(taken.roll((-shift, -shift), dims=(1, 2))[..., None], window)
    places = torch.arange(rows * columns, device=device).view(1, -1, window * window, 1)
    places = join_windows(places, window, rows, columns)[..., 0].roll((shift, shift), dims=(1, 2))
    places = places[:, :height, :width] + image * (rows * columns)
    return taken.flatten(), places.flatten()


def in_a_graph() -> bool:
    """Whether operations are being recorded: compiled, or captured by CUDA."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def kept(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make` with a cache, which compiled graphs do without, and graphs that CUDA captures: what is
    made in one belongs to its memory pool, and what was made before may be freed under it."""

    @lru_cache(maxsize=CACHED_SIZES)
    def cached(*key: Any) -> Any:
        with torch.inference_mode(False):  # training may use what prediction cached
            return make(*key)

    return lambda *key: make(*key) if in_a_graph() else cached(*key)


kept_shift_mask, kept_window_rows = kept(shift_mask), kept(window_rows)


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
        """x [B, H, W, C] -> the same shape."""
        b, h, w, c = x.shape
        n = self.window**2
        taken, places = kept_window_rows(b, h, w, self.window, shift, x.device)
        # Products are over pixels, and padding is one row of zeros: it may be half of a window map.
        qkv = self.qkv(F.pad(x.reshape(-1, c), (0, 0, 0, 1))).index_select(0, taken)
        windows = (h + missing(h, self.window)) * (w + missing(w, self.window)) // n
        qkv = qkv.view(b, windows, n, 3, self.heads, c // self.heads).permute(3, 0, 1, 4, 2, 5)
        x = self.attend(qkv, self.bias(h, w, shift, qkv))
        x = x.transpose(2, 3).reshape(-1, c).index_select(0, places)
        return self.out(x).view(b, h, w, c)

    def bias(self, height: int, width: int, shift: int, like: Tensor) -> Tensor:
        """What to add to attention scores, [1 or windows, heads, N, N]."""
        n = self.window**2
        bias = self.bias_table.index_select(0, self.index.flatten()).t().reshape(1, -1, n, n)
        if not shift:
            return bias
        rows, columns = (side + missing(side, self.window) for side in (height, width))
        return bias + kept_shift_mask(rows, columns, self.window, shift, like.device, bias.dtype)

    def attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """qkv [3, B, windows, heads, N, d], bias [1 or windows, heads, N, N]
        -> [B, windows, heads, N, d]."""
        b, windows, heads, n, d = qkv.shape[1:]
        if bias.requires_grad and bias.device.type == "cpu":
            # There SDPA has no kernel with a gradient of the bias, and its fallback is slower.
            q, k, v = qkv
            scores = q * d**-0.5 @ k.mT
            scores += bias
            return scores.softmax(-1) @ v
        # Attention kernels want four dimensions and a bias that broadcasts over the first: windows
        # go with the batch when they share the bias, with the heads when each has its own.
        rows = (b * windows, heads) if b == 1 or len(bias) == 1 else (b, windows * heads)
        bias = bias.reshape(-1, rows[1], n, n)
        q, k, v = (part.reshape(*rows, n, d) for part in qkv)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return x.view(b, windows, heads, n, d)


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
        attended = self.attention(self.norm1(x), self.shift)
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
            features.append(norm(x).permute(0, 3, 1, 2))
        return features


def init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
