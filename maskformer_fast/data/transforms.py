"""From samples to batches: geometry and colour changes of a PanopticSample, and `collate`.

A transform is a callable PanopticSample -> PanopticSample; random ones draw from torch's global
generator, which DataLoader seeds for each worker. Sizes are (H, W) in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from maskformer_fast.data.sample import PanopticSample
from maskformer_fast.images import (
    IMAGE_MEAN,
    IMAGE_STD,
    batch_images,
    fitting_scale,
    resize_image,
    scaled_size,
    to_uint8,
)
from maskformer_fast.targets import Targets

GREY_WEIGHTS = (0.299, 0.587, 0.114)


class Compose:
    """Apply transforms one after another."""

    def __init__(self, *transforms: Any) -> None:
        self.transforms = transforms

    def __call__(self, sample: PanopticSample) -> PanopticSample:
        for transform in self.transforms:
            sample = transform(sample)
        return sample


@dataclass
class RandomHorizontalFlip:
    """Mirror left and right with probability `probability`."""

    probability: float = 0.5

    def __call__(self, sample: PanopticSample) -> PanopticSample:
        if _uniform(0, 1) >= self.probability:
            return sample
        return replace(sample, image=sample.image.flip(-1), segments=sample.segments.flip(-1))


@dataclass
class ResizeShortSide:
    """Resize to a short side, less where the long side would exceed `long_side`."""

    short_side: int
    long_side: int | None = None

    def __call__(self, sample: PanopticSample) -> PanopticSample:
        return resize(sample, fitting_scale(sample.segments.shape, self.short_side, self.long_side))


@dataclass
class RandomScale:
    """Resize so that the short side is `short_side` times a factor drawn from `factors`."""

    short_side: int
    factors: tuple[float, float] = (0.5, 2.0)

    def __call__(self, sample: PanopticSample) -> PanopticSample:
        factor = _uniform(*self.factors)
        return resize(sample, factor * self.short_side / min(sample.segments.shape))


@dataclass
class RandomCrop:
    """Cut out a window of `size` (H, W); a shorter side is kept whole (`collate` pads it).

    Targets that lie outside the window are dropped.
    """

    size: tuple[int, int]

    def __call__(self, sample: PanopticSample) -> PanopticSample:
        window = []
        for have, want in zip(sample.segments.shape, self.size, strict=True):
            start = int(torch.randint(max(have - want, 0) + 1, ()))
            window.append(slice(start, start + want))
        rows, columns = window
        return drop_absent_targets(
            replace(
                sample,
                image=sample.image[:, rows, columns],
                segments=sample.segments[rows, columns],
            )
        )


@dataclass
class ColorJitter:
    """Change brightness, contrast and saturation by factors of up to 1 +- the given ones."""

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __call__(self, sample: PanopticSample) -> PanopticSample:
        image = sample.image.float() * _around_one(self.brightness)
        mean = image.mean()
        image = mean + (image - mean) * _around_one(self.contrast)
        grey = torch.einsum("chw,c->hw", image, torch.tensor(GREY_WEIGHTS))
        image = grey + (image - grey) * _around_one(self.saturation)
        return replace(sample, image=to_uint8(image))


def resize(sample: PanopticSample, scale: float) -> PanopticSample:
    """Both sides times `scale`: the image bilinear with antialiasing, segments nearest.

    Targets that no pixel of the smaller map shows are dropped.
    """
    height, width = scaled_size(sample.segments.shape, scale)
    if (height, width) == tuple(sample.segments.shape):
        return sample
    image = resize_image(sample.image, (height, width))
    rows = _nearest(sample.segments.shape[0], height)
    columns = _nearest(sample.segments.shape[1], width)
    segments = sample.segments[rows][:, columns]
    return drop_absent_targets(replace(sample, image=image, segments=segments))


def drop_absent_targets(sample: PanopticSample) -> PanopticSample:
    """Remove the targets without a pixel and renumber the others in their order."""
    count = len(sample.labels)
    index = sample.segments.long() + 1  # [H, W], 0 is void
    present = torch.bincount(index.flatten(), minlength=count + 1)[1:] > 0  # [T]
    if present.all():
        return sample
    new_index = torch.cat([torch.tensor([-1]), present.cumsum(0) - 1])
    segments = new_index[index].to(sample.segments.dtype)
    return replace(sample, segments=segments, labels=sample.labels[present])


def collate(
    samples: Sequence[PanopticSample],
    *,
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
    size_divisor: int = 32,
    size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    pad_to: int | None = None,
) -> dict[str, Any]:
    """A batch of samples of any sizes, padded at the bottom right.

    Returns `pixel_values` and `pixel_mask` as `batch_images` with the same options does;
    `targets`, with void in the padding; `image_ids` and `file_names`.
    `num_classes` and `pad_to` are those of `Targets.from_segments`.
    """
    if not samples:
        raise ValueError("samples: expected at least one, got none")
    pixel_values, pixel_mask = batch_images(
        [sample.image for sample in samples],
        mean=mean,
        std=std,
        size_divisor=size_divisor,
        size=size,
    )
    height, width = pixel_mask.shape[1:]
    targets = Targets.from_segments(
        [sample.segments for sample in samples],
        [sample.labels for sample in samples],
        num_classes=num_classes,
        size=(height, width),
        pad_to=pad_to,
    )
    return {
        "pixel_values": pixel_values,
        "pixel_mask": pixel_mask,
        "targets": targets,
        "image_ids": [sample.image_id for sample in samples],
        "file_names": [sample.file_name for sample in samples],
    }


def _nearest(have: int, want: int) -> Tensor:
    """Source index [want] of the nearest of `have` cells, by cell centres."""
    return (2 * torch.arange(want) + 1) * have // (2 * want)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _around_one(spread: float) -> float:
    return _uniform(1 - spread, 1 + spread)
