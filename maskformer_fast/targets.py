"""Targets: the labels and masks of a batch's ground truth, as tensors of fixed shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

VOID = -1  # value of `segments` where a pixel belongs to no target
MAX_TARGETS = torch.iinfo(torch.int16).max


@dataclass(frozen=True, eq=False)
class Targets:
    """Ground truth of B images, padded to T targets and H x W pixels.

    labels       [B, T] int64        class of each target, in [0, K)
    num_targets  [B] int32           rows of an image past it are padding
    and exactly one of
    segments     [B, H, W] int16     index of the pixel's target, -1 for void or padding
    masks        [B, T, H, W] bool   targets may overlap; a pixel that none covers is void;
                                     padding rows are empty

    Build it with `from_segments`, `from_masks` or `from_panoptic`, which check their input:
    on the CPU, labels outside [0, num_classes) and indices outside the targets are refused with the
    image's index; tensors already on a GPU are trusted, since looking would be a host read.
    """

    labels: Tensor  # [B, T]
    num_targets: Tensor  # [B]
    segments: Tensor | None = None  # [B, H, W]
    masks: Tensor | None = None  # [B, T, H, W]

    def __post_init__(self) -> None:
        if (self.segments is None) == (self.masks is None):
            raise ValueError("Targets: expected exactly one of `segments` and `masks`")
        b, t = _shape("labels", self.labels, 2)
        h, w = self.pixels.shape[-2:]
        _expect("labels", self.labels, (b, t), torch.int64)
        _expect("num_targets", self.num_targets, (b,), torch.int32)
        if self.segments is not None:
            _expect("segments", self.segments, (b, h, w), torch.int16)
        if self.masks is not None:
            _expect("masks", self.masks, (b, t, h, w), torch.bool)
        devices = {x.device for x in (self.labels, self.num_targets, self.pixels)}
        if len(devices) > 1:
            raise ValueError(f"Targets: expected all tensors on one device, got {devices}")

    @property
    def pixels(self) -> Tensor:
        """`segments` [B, H, W] int16 or `masks` [B, T, H, W] bool, whichever there is."""
        pixels = self.masks if self.segments is None else self.segments
        assert pixels is not None
        return pixels

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the padded images."""
        h, w = self.pixels.shape[-2:]
        return h, w

    @property
    def is_target(self) -> Tensor:
        """[B, T] bool: False for padding rows."""
        rows = torch.arange(self.labels.shape[1], device=self.labels.device)
        return rows < self.num_targets[:, None]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """The same targets on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Targets:
        """The same targets in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def padded(self, num_targets: int) -> Targets:
        """The same targets with padding rows up to T = `num_targets`."""
        missing = num_targets - self.labels.shape[1]
        if missing < 0:
            raise ValueError(
                f"num_targets: expected at least {self.labels.shape[1]}, got {num_targets}"
            )
        labels = F.pad(self.labels, (0, missing))
        masks = None if self.masks is None else F.pad(self.masks, (0, 0, 0, 0, 0, missing))
        return Targets(labels, self.num_targets, segments=self.segments, masks=masks)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Targets:
        segments = None if self.segments is None else function(self.segments)
        masks = None if self.masks is None else function(self.masks)
        return Targets(function(self.labels), function(self.num_targets), segments, masks)

    @classmethod
    def from_segments(
        cls,
        segments: Sequence[Tensor],
        labels: Sequence[Tensor],
        *,
        num_classes: int | None = None,
        size: tuple[int, int] | None = None,
        pad_to: int | None = None,
    ) -> Targets:
        """Targets from one segment map per image.

        segments     B integer tensors [H_b, W_b]: index of the pixel's target, negative for void
        labels       B integer tensors [T_b]
        num_classes  K: labels outside [0, K) are refused
        size         (H, W) to pad to with void, at the bottom right; default: the largest
        pad_to       T to pad to (CUDA graphs need it fixed); default: the largest
        """
        padded_labels, num_targets = _pad_labels(labels, len(segments), num_classes, pad_to)
        for image, (index_map, label) in enumerate(zip(segments, labels, strict=True)):
            _shape(f"segments[{image}]", index_map, 2)
            _whole_numbers(f"segments[{image}]", index_map)
            if index_map.device.type != "cpu" or index_map.numel() == 0:
                continue
            if int(index_map.max()) >= len(label):
                raise ValueError(
                    f"segments[{image}]: expected target indices < {len(label)},"
                    f" the number of labels; got {int(index_map.max())}"
                )
        maps = [index_map.clamp(min=VOID).to(torch.int16) for index_map in segments]
        stacked = _pad_images(maps, "segments", size, VOID)
        return cls(padded_labels, num_targets, segments=stacked)

    @classmethod
    def from_masks(
        cls,
        mask_labels: Sequence[Tensor],
        class_labels: Sequence[Tensor],
        *,
        num_classes: int | None = None,
        size: tuple[int, int] | None = None,
        pad_to: int | None = None,
    ) -> Targets:
        """Targets from the list form of transformers; masks of one image may overlap.

        mask_labels   B tensors [T_b, H_b, W_b], bool or 0/1
        class_labels  B integer tensors [T_b]
        The options are those of `from_segments`. On the CPU a value other than 0 and 1
        (an ignore value left in the masks, say) is refused.
        """
        labels, num_targets = _pad_labels(class_labels, len(mask_labels), num_classes, pad_to)
        for image, (masks, label) in enumerate(zip(mask_labels, class_labels, strict=True)):
            _shape(f"mask_labels[{image}]", masks, 3)
            if len(masks) != len(label):
                raise ValueError(
                    f"mask_labels[{image}]: expected {len(label)} masks, one for each label;"
                    f" got {len(masks)}"
                )
            if masks.dtype == torch.bool or masks.device.type != "cpu":
                continue
            if not ((masks == 0) | (masks == 1)).all():
                raise ValueError(
                    f"mask_labels[{image}]: expected only 0 and 1, got values"
                    f" from {masks.min().item()} to {masks.max().item()}"
                )
        most = labels.shape[1]
        images = [
            F.pad(masks.bool(), (0, 0, 0, 0, 0, most - len(masks)), value=False)
            for masks in mask_labels
        ]
        return cls(labels, num_targets, masks=_pad_images(images, "mask_labels", size, False))

    @classmethod
    def from_panoptic(
        cls,
        id_map: Sequence[Tensor],
        segments_info: Sequence[Sequence[Mapping[str, Any]]],
        *,
        num_classes: int | None = None,
        size: tuple[int, int] | None = None,
        pad_to: int | None = None,
    ) -> Targets:
        """Targets from COCO panoptic annotations.

        id_map         B integer tensors [H_b, W_b] of segment ids (R + 256 G + 65536 B); 0 is void
        segments_info  B lists of {"id", "category_id" (a label in [0, K)), "iscrowd" (optional)};
                       crowd segments and ids that are not listed become void
        The options are those of `from_segments`. A segment without a pixel is left out.
        """
        if len(id_map) != len(segments_info):
            raise ValueError(
                f"segments_info: expected {len(id_map)} lists, one for each id_map;"
                f" got {len(segments_info)}"
            )
        segments, labels = [], []
        for image, (ids, infos) in enumerate(zip(id_map, segments_info, strict=True)):
            if any("id" not in info or "category_id" not in info for info in infos):
                raise ValueError(f"segments_info[{image}]: expected id and category_id in each")
            present = set(ids.unique().tolist()) - {0}
            kept = [i for i in infos if not i.get("iscrowd") and i["id"] in present]
            indices = torch.full(ids.shape, VOID, dtype=torch.int64, device=ids.device)
            for index, info in enumerate(kept):
                indices[ids == info["id"]] = index
            segments.append(indices)
            label = torch.tensor([info["category_id"] for info in kept], dtype=torch.int64)
            labels.append(label.to(ids.device))
        return cls.from_segments(
            segments, labels, num_classes=num_classes, size=size, pad_to=pad_to
        )


def _shape(name: str, value: Tensor, dims: int) -> tuple[int, ...]:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dim() != dims:
        raise ValueError(f"{name}: expected {dims} dimensions, got shape {tuple(value.shape)}")
    return tuple(value.shape)


def _whole_numbers(name: str, value: Tensor) -> None:
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer dtype, got {value.dtype}")


def _expect(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if _shape(name, value, len(shape)) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {value.dtype}")


def _pad_labels(
    labels: Sequence[Tensor], images: int, num_classes: int | None, pad_to: int | None
) -> tuple[Tensor, Tensor]:
    """Labels padded with 0 to [B, T], and the number of each image's targets [B]."""
    if len(labels) != images or images == 0:
        raise ValueError(
            f"labels: expected one tensor for each of {max(images, 1)} images, got {len(labels)}"
        )
    for image, label in enumerate(labels):
        _shape(f"labels[{image}]", label, 1)
        _whole_numbers(f"labels[{image}]", label)
        if label.device.type == "cpu" and len(label):
            low, high = int(label.min()), int(label.max())
            if low < 0 or (num_classes is not None and high >= num_classes):
                limit = "num_classes" if num_classes is None else num_classes
                raise ValueError(
                    f"labels[{image}]: expected labels in [0, {limit}), got {low} to {high}"
                    " (void is -1 in `segments`, not a label)"
                )
    most = max(len(label) for label in labels)
    width = most if pad_to is None else pad_to
    if width < most or width > MAX_TARGETS:
        raise ValueError(
            f"pad_to: expected between {most} (the most targets of an image) and {MAX_TARGETS},"
            f" got {width}"
        )
    padded = torch.stack([F.pad(label.long(), (0, width - len(label))) for label in labels])
    counts = [len(label) for label in labels]
    return padded, torch.tensor(counts, dtype=torch.int32).to(padded.device, non_blocking=True)


def _pad_images(
    images: Sequence[Tensor], name: str, size: tuple[int, int] | None, value: int | bool
) -> Tensor:
    """Stack images [..., H_b, W_b], padded at the bottom right with `value`."""
    height, width = size or (
        max(image.shape[-2] for image in images),
        max(image.shape[-1] for image in images),
    )
    for index, image in enumerate(images):
        if image.shape[-2] > height or image.shape[-1] > width:
            raise ValueError(
                f"{name}[{index}]: expected at most {height} x {width} pixels (`size`),"
                f" got {image.shape[-2]} x {image.shape[-1]}"
            )
    return torch.stack(
        [
            F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]), value=value)
            for image in images
        ]
    )
