"""Tolerances, targets and layouts of memory shared by the tests of the ops."""

import math

import torch
from torch import Tensor

from maskformer_fast import Targets

TOLERANCE = {  # relative and absolute, against the float64 reference on the same rounded inputs
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}
LOSS_TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}  # costs and losses are float32 for every input dtype


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def random_targets(
    counts: list[int], size: tuple[int, int], *, num_classes: int, masks: bool, seed: int = 0
) -> Targets:
    """Targets with `counts` targets of each image and some void; `masks`: as masks that overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(num_classes, (n,), generator=generator) for n in counts]
    if masks:
        shapes = [torch.rand(n, *size, generator=generator) < 0.4 for n in counts]
        return Targets.from_masks(shapes, labels, num_classes=num_classes)
    segments = [torch.randint(-1, max(n, 1), size, generator=generator) for n in counts]
    segments = [s.clamp(max=n - 1) for s, n in zip(segments, counts, strict=True)]
    return Targets.from_segments(segments, labels, num_classes=num_classes)


def surroundings(x: Tensor) -> float:
    """What a call must not read: NaN, or the largest value of the dtype (True for bool)."""
    if x.is_floating_point():
        return math.nan
    return 1 if x.dtype == torch.bool else torch.iinfo(x.dtype).max


def shifted(x: Tensor, items: int) -> Tensor:
    """The same values, `items` past the start of an allocation."""
    memory = torch.full((items + x.numel() + 1,), surroundings(x), dtype=x.dtype, device=x.device)
    view = memory[items : items + x.numel()].view(x.shape)
    return view.copy_(x)


def strided(x: Tensor) -> Tensor:
    """The same values at every second place of a row."""
    shape = (*x.shape[:-1], 2 * x.shape[-1] + 1)
    wide = torch.full(shape, surroundings(x), dtype=x.dtype, device=x.device)
    return wide[..., 1::2].copy_(x)


def sliced(x: Tensor) -> Tensor:
    """The same values inside a tensor that is larger along every dimension."""
    shape = [n + 3 for n in x.shape]
    large = torch.full(shape, surroundings(x), dtype=x.dtype, device=x.device)
    return large[tuple(slice(1, n + 1) for n in x.shape)].copy_(x)


def transposed(x: Tensor) -> Tensor:
    """The same values with the last two dimensions changed over in memory."""
    return x.mT.contiguous().mT if x.dim() > 1 else strided(x)


def channels_last(x: Tensor) -> Tensor:
    """The same values with the second dimension innermost, as channels_last is of images."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else strided(x)


def expanded(x: Tensor) -> Tensor:
    """The first of the outermost dimension for all, at the same place in memory."""
    return x[:1].expand_as(x)


LAYOUTS = {
    "off_by_one_item": lambda x: shifted(x, 1),
    "off_by_16_bytes": lambda x: shifted(x, 16 // x.element_size()),
    "strided": strided,
    "sliced": sliced,
    "transposed": transposed,
    "channels_last": channels_last,
    "expanded": expanded,
}
