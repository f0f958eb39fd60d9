"""Tolerances, shapes and targets shared by the tests of the dense ops."""

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


def strided(x: Tensor) -> Tensor:
    """The same values in memory that is not contiguous."""
    wide = torch.empty(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    view = wide[..., 1::2]
    view.copy_(x)
    return view
