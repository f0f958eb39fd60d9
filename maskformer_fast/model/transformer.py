"""The DETR transformer of MaskFormer: post-norm layers, sine positions, learned queries.

(Carion et al., "End-to-End Object Detection with Transformers", 2020.)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 10000


def sine_positions(feature: Tensor, channels: int) -> Tensor:
    """Sine position embedding [h*w, channels] of a feature map [B, C, h, w], in its dtype.

    The first half of the channels encodes the row, the second the column; positions run over
    (0, 2 pi], channel pairs are sin and cos at falling frequencies.
    """
    h, w = feature.shape[-2:]
    frequency = torch.arange(channels // 4, device=feature.device, dtype=torch.float32)
    frequency = TEMPERATURE ** (-4 * frequency / channels)

    def encode(size: int) -> Tensor:
        position = torch.arange(1, size + 1, device=feature.device, dtype=torch.float32)
        angle = (position * (2 * math.pi / (size + 1e-6)))[:, None] * frequency
        return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)  # [size, channels / 2]

    rows, columns = encode(h), encode(w)
    both = (rows[:, None].expand(-1, w, -1), columns[None].expand(h, -1, -1))
    return torch.cat(both, dim=2).flatten(0, 1).to(feature.dtype)


class Attention(nn.Module):
    """Multi-head attention with separate projections: [B, S, D] over [B, R, D] -> [B, S, D]."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, size)
        self.out = nn.Linear(size, size)
        self.heads, self.dropout = heads, dropout

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q(query), self.k(key), self.v(value))
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out(attended.transpose(1, 2).flatten(2))


class SelfAttentionLayer(nn.Module):
    """What the layers share: self-attention and feed-forward, each added and normalised."""

    def __init__(self, size: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(size, heads, dropout)
        self.self_norm = nn.LayerNorm(size)
        self.linear1, self.linear2 = nn.Linear(size, feedforward), nn.Linear(feedforward, size)
        self.ffn_norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def attend_self(self, x: Tensor, positions: Tensor) -> Tensor:
        placed = x + positions
        return self.self_norm(x + self.dropout(self.self_attention(placed, placed, x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(self.linear1(x).relu())
        return self.ffn_norm(x + self.dropout(self.linear2(inner)))


class EncoderLayer(SelfAttentionLayer):
    """[B, S, D] and positions [S, D] -> [B, S, D]."""

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.feed_forward(self.attend_self(x, positions))


class DecoderLayer(SelfAttentionLayer):
    """With attention over the image between self-attention and feed-forward."""

    def __init__(self, size: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__(size, heads, feedforward, dropout)
        self.cross_attention = Attention(size, heads, dropout)
        self.cross_norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, placed_memory: Tensor) -> Tensor:
        """x, queries [B, Q, D]; memory, placed_memory (with positions) [B, h*w, D] -> [B, Q, D]."""
        x = self.attend_self(x, queries)
        attended = self.cross_attention(x + queries, placed_memory, memory)
        return self.feed_forward(self.cross_norm(x + self.dropout(attended)))


class Encoder(nn.Module):
    """A stack of encoder layers over a feature map: [B, D, h, w] -> [B, D, h, w]."""

    def __init__(
        self, layers: int, size: int, heads: int, feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(size, heads, feedforward, dropout) for _ in range(layers)
        )

    def forward(self, feature: Tensor) -> Tensor:
        x = feature.flatten(2).transpose(1, 2)
        positions = sine_positions(feature, x.shape[2])
        for layer in self.layers:
            x = layer(x, positions)
        return x.transpose(1, 2).reshape(feature.shape)


class Decoder(nn.Module):
    """Decoder layers with one final norm that every supervised layer shares."""

    def __init__(
        self, layers: int, size: int, heads: int, feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(size, heads, feedforward, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(size)

    def forward(
        self, queries: Tensor, memory: Tensor, positions: Tensor, every_layer: bool
    ) -> Tensor:
        """[B, Q, D], [B, h*w, D], [h*w, D] -> [L, B, Q, D]: all layers, or the last one (L = 1)."""
        x, placed_memory = torch.zeros_like(queries), memory + positions
        outputs = []
        for layer in self.layers:
            x = layer(x, queries, memory, placed_memory)
            outputs.append(x)
        return self.norm(torch.stack(outputs if every_layer else outputs[-1:]))


class TransformerModule(nn.Module):
    """Learned queries attend to a feature map: [B, in_channels, h, w] -> [L, B, Q, D]."""

    def __init__(
        self,
        in_channels: int,
        *,
        queries: int,
        size: int,
        heads: int,
        feedforward: int,
        layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.query_embeddings = nn.Embedding(queries, size)
        self.input_projection = (
            nn.Identity() if in_channels == size else nn.Conv2d(in_channels, size, 1)
        )
        self.decoder = Decoder(layers, size, heads, feedforward, dropout)
        for parameter in self.decoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, feature: Tensor, every_layer: bool) -> Tensor:
        memory = self.input_projection(feature)
        positions = sine_positions(memory, memory.shape[1])
        queries = self.query_embeddings.weight.to(memory.dtype).expand(len(memory), -1, -1)
        return self.decoder(queries, memory.flatten(2).transpose(1, 2), positions, every_layer)
