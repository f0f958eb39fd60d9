"""Inputs as a trained model gives them: smooth maps, a few confident queries, the rest "no object".

Noise would flatter whoever skips work on smooth maps least, and all-equal maps most; tests have
both. Everything comes from a seed and is made on the CPU, so that all devices see the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskformer_fast import Targets

DETAIL = 6  # features of a map along one side
SHARPNESS = 6.0  # of a mask's edge: logits per unit of a field that varies by about 1
LARGEST_LOGIT = 12.0
CONFIDENCE = 8.0  # logit of a query's own class above the others: a probability of about 0.93
LAYER_NOISE = 0.02  # of an earlier decoder layer's mask queries, which have length 1

Size = tuple[int, int]


class Scene(NamedTuple):
    """Predictions of B images that show T segments each, and the targets they are after."""

    class_logits: Tensor  # [B, Q, K+1]
    mask_logits: Tensor  # [B, Q, h, w]
    targets: Targets

    def to(self, device: torch.device) -> Scene:
        return Scene(*(part.to(device) for part in self))


class Embeddings(NamedTuple):
    """A scene before the dot product, for L decoder layers."""

    class_logits: Tensor  # [L, B, Q, K+1]
    mask_queries: Tensor  # [L, B, Q, C]
    pixel_features: Tensor  # [B, C, h, w]
    targets: Targets

    def to(self, device: torch.device, dtype: str) -> Embeddings:
        *tensors, targets = self
        tensors = [t.to(device, getattr(torch, dtype)) for t in tensors]
        return Embeddings(*tensors, targets.to(device))


def scene(b: int, q: int, t: int, k: int, grid: Size, size: Size) -> Scene:
    """T >= 2 of the Q queries each own a region of the image, whose edges are the targets'."""
    generator = torch.Generator().manual_seed(0)
    fields = _smooth((b, t), grid, generator)
    best, second = fields.topk(2, 1).values.unbind(1)
    margin = torch.where(fields == best[:, None], fields - second[:, None], fields - best[:, None])
    mask_logits = 2 * _smooth((b, q), grid, generator) - 8  # of queries that see nothing
    mask_logits[:, :t] = SHARPNESS * margin
    class_logits = torch.randn(b, q, k + 1, generator=generator)
    labels = torch.randint(k, (b, t), generator=generator)
    class_logits[:, t:, k] += CONFIDENCE
    class_logits[:, :t].scatter_add_(2, labels[..., None], torch.full((b, t, 1), CONFIDENCE))
    segments = F.interpolate(fields, size=size, mode="bilinear").argmax(1)
    order = torch.randperm(q, generator=generator)
    return Scene(
        class_logits[:, order],
        mask_logits[:, order].clamp(-LARGEST_LOGIT, LARGEST_LOGIT),
        Targets.from_segments(list(segments), list(labels), num_classes=k),
    )


def embeddings(of: Scene, layers: int, channels: int) -> Embeddings:
    """Queries and features whose product in the last layer is the scene's mask logits."""
    b, q = of.mask_logits.shape[:2]
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(channels, q, generator=generator)).Q  # [C, Q]
    features = torch.einsum("cq,bqhw->bchw", basis, of.mask_logits)
    age = torch.arange(layers - 1, -1, -1)[:, None, None, None]
    noise = torch.randn(layers, b, q, channels, generator=generator)
    class_noise = torch.randn(layers, *of.class_logits.shape, generator=generator)
    return Embeddings(
        of.class_logits + age * class_noise / layers,
        basis.mT + LAYER_NOISE * age * noise / layers,
        features,
        of.targets,
    )


def uniform_costs(n: int, t: int, q: int) -> Tensor:
    """[N, T, Q] in [0, 1): the family that every solver finds easy."""
    return torch.rand(n, t, q, generator=torch.Generator().manual_seed(0))


def early_costs(n: int, t: int, q: int) -> Tensor:
    """[N, T, Q] as in early training, where queries hardly differ: a_t + b_q + 1e-3 noise."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.rand(shape, generator=generator) for shape in ((n, t, 1), (n, 1, q)))
    return rows + columns + 1e-3 * torch.rand(n, t, q, generator=generator)


def bytes_of(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@torch.no_grad()
def spread_out(model: nn.Module) -> None:
    """Random weights with which no logit is near zero, as a fresh model's all are."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if p.ndim > 1:
                fan_in = 1 if isinstance(module, nn.Embedding) else p[0].numel()
                p.normal_(0, fan_in**-0.5, generator=generator)


def _smooth(maps: tuple[int, int], size: Size, generator: torch.Generator) -> Tensor:
    """[*maps, *size], normally distributed, varying over a sixth of a side."""
    coarse = torch.randn(*maps, DETAIL, DETAIL, generator=generator)
    return F.interpolate(coarse, size=size, mode="bicubic")
