"""Checks of the public functions: once, in Python, before dispatch; messages say what came."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Collection

import torch
from torch import Tensor

from maskformer_fast.targets import Targets

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Sizes(dict[str, int]):
    """The symbols of a call (B, Q, ...) and the size each was first seen with."""


def tensor(
    name: str,
    value: Tensor,
    layout: str,
    sizes: Sizes,
    *,
    dtypes: Collection[torch.dtype] = FLOAT_DTYPES,
    like: Tensor | None = None,
) -> None:
    """Check that `value` is a tensor of `layout`, as "B Q K+1", in agreement with `sizes`.

    A symbol not seen before is recorded in `sizes`; "K+1" is a symbol of its own, and "..." at the
    beginning stands for any dimensions. With `like`, dtype and device must be those of `like`.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    symbols = layout.split()
    shape: tuple[int, ...] = value.shape
    if symbols[0] == "...":
        symbols = symbols[1:]
        shape = shape[-len(symbols) :]
    found = dict(zip(symbols, shape, strict=False))
    differs = bool(sizes) and any(sizes.get(s, n) != n for s, n in found.items())
    if differs or len(shape) != len(symbols):
        wanted = ", ".join(f"{s}={sizes[s]}" if s in sizes else s for s in layout.split())
        raise ValueError(f"{name}: expected shape [{wanted}], got {tuple(value.shape)}")
    sizes.update(found)
    if like is None and value.dtype not in dtypes:
        expected = ", ".join(str(d) for d in dtypes)
        raise TypeError(f"{name}: expected dtype {expected}; got {value.dtype}")
    if like is not None and (value.dtype, value.device) != (like.dtype, like.device):
        raise TypeError(
            f"{name}: expected {like.dtype} on {like.device} like the other inputs,"
            f" got {value.dtype} on {value.device}"
        )


def queries(name: str, sizes: Sizes) -> None:
    """Refuse Q = 0: no query can stand for any mask."""
    if sizes["Q"] == 0:
        raise ValueError(f"{name}: expected at least one query, got Q = 0")


def same_device(name: str, value: Tensor, like: Tensor) -> None:
    """Refuse a tensor on another device than the call's main input."""
    if value.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device}, got {value.device}")


def at_least(name: str, value: float, least: float) -> None:
    """Refuse what is no number, a number below `least`, and NaN."""
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not value >= least:
        raise ValueError(f"{name}: expected a number >= {least}, got {value}")


def output_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a map, each at least 1."""
    try:
        sides = [operator.index(side) for side in size]
    except TypeError as error:
        raise TypeError(f"size: expected two whole numbers (H, W), got {size!r}") from error
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"size: expected (H, W), each >= 1, got {size}")
    return sides[0], sides[1]


def targets(value: Targets, sizes: Sizes, like: Tensor) -> None:
    """Check that `value` is Targets of the call's B images and K classes, on the device of `like`.

    Labels are looked at on the CPU only, and not while compiling: elsewhere that would be a host
    read.
    """
    _targets_and_grid(value, sizes, like)
    if len(value.labels) != sizes["B"]:
        raise ValueError(f"targets: expected {sizes['B']} images, got {len(value.labels)}")
    num_classes = sizes["K+1"] - 1
    if like.device.type != "cpu" or torch.compiler.is_compiling() or value.labels.numel() == 0:
        return
    labels = torch.where(value.is_target, value.labels, 0)
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= max(num_classes, 1):
        raise ValueError(
            f"targets: expected labels in [0, {num_classes}), the classes of class_logits;"
            f" got {least} to {most}"
        )


def rows_of_targets(name: str, value: Targets, sizes: Sizes, like: Tensor) -> None:
    """Check Targets for N = L*B rows (row n belongs to image n % B) of T targets each."""
    _targets_and_grid(value, sizes, like)
    images, most = value.labels.shape
    whole = sizes["N"] % images == 0 if images else sizes["N"] == 0
    if not whole or sizes["T"] != most:
        raise ValueError(
            f"{name}: expected [L * {images}, {most}, h, w] for these targets,"
            f" got N = {sizes['N']}, T = {sizes['T']}"
        )


def _targets_and_grid(value: Targets, sizes: Sizes, like: Tensor) -> None:
    """What Targets and mask grid must satisfy in every op that compares them."""
    if not isinstance(value, Targets):
        raise TypeError(f"targets: expected Targets, got {type(value).__name__}")
    same_device("targets", value.labels, like)
    for name, (height, width) in (
        ("the mask grid", (sizes["h"], sizes["w"])),
        ("targets", value.size),
    ):
        if height < 1 or width < 1:
            raise ValueError(f"{name}: expected at least 1 x 1, got {height} x {width}")


def predictions(class_logits: Tensor, mask_logits: Tensor, region: Tensor | None) -> Sizes:
    """Check the inputs that the maps have in common; returns the sizes.

    The range of `region` is looked at on the CPU only, and not while compiling: elsewhere that
    would be a host read.
    """
    sizes = Sizes()
    tensor("class_logits", class_logits, "B Q K+1", sizes)
    tensor("mask_logits", mask_logits, "B Q h w", sizes, like=class_logits)
    _map_inputs("mask_logits", mask_logits, sizes, region)
    return sizes


def prediction_features(
    class_logits: Tensor, mask_queries: Tensor, pixel_features: Tensor, region: Tensor | None
) -> Sizes:
    """As `predictions`, for mask logits that are still queries and features."""
    sizes = Sizes()
    tensor("class_logits", class_logits, "B Q K+1", sizes)
    tensor("mask_queries", mask_queries, "B Q C", sizes, like=class_logits)
    tensor("pixel_features", pixel_features, "B C h w", sizes, like=class_logits)
    _map_inputs("pixel_features", pixel_features, sizes, region)
    return sizes


def _map_inputs(name: str, grid: Tensor, sizes: Sizes, region: Tensor | None) -> None:
    """What the sizes and the region must satisfy; `grid` [B, ..., h, w] is the argument `name`."""
    queries("class_logits", sizes)
    if sizes["K+1"] < 2:
        raise ValueError(
            'class_logits: expected a class and "no object" at least, K+1 >= 2;'
            f" got K+1 = {sizes['K+1']}"
        )
    if sizes["h"] < 1 or sizes["w"] < 1:
        raise ValueError(f"{name}: expected h and w >= 1, got {tuple(grid.shape)}")
    if region is None:
        return
    axes = Sizes(B=sizes["B"], axes=2)
    tensor("region", region, "B axes", axes, dtypes=(torch.float32, torch.float64))
    same_device("region", region, grid)
    if region.device.type == "cpu" and not torch.compiler.is_compiling():
        extent = region.new_tensor([sizes["h"], sizes["w"]])
        if not bool(((region > 0) & (region <= extent)).all()):
            raise ValueError(
                f"region: expected rows in (0, {sizes['h']}] and columns in (0, {sizes['w']}],"
                f" got {region.tolist()}"
            )


def class_ids(name: str, value: Collection[int], sizes: Sizes) -> list[int]:
    """The classes of `value` in ascending order, each once and in [0, K)."""
    try:
        classes = sorted({operator.index(label) for label in value})
    except TypeError as error:
        raise TypeError(f"{name}: expected a collection of classes, got {value!r}") from error
    num_classes = sizes["K+1"] - 1
    if classes and not 0 <= classes[0] <= classes[-1] < num_classes:
        raise ValueError(f"{name}: expected classes in [0, {num_classes}), got {classes}")
    return classes


def one_of(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a word that is not among `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {tuple(choices)}, got {value!r}")
