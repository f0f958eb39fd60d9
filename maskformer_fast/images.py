"""Pictures: from a file to RGB pixels, and from pixels to the model's input.

A file is opened only as one of FORMATS (some others of Pillow's start programs) and decoded only
when its header promises at most MAX_PIXELS. Sizes are (H, W) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from maskformer_fast.config import MaskFormerConfig

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 2**26  # 8192 x 8192; a few kilobytes can ask for terabytes
GREY_STEP = 257  # of 16 bits in one of 8: 65535 becomes 255

IMAGE_MEAN = (0.485, 0.456, 0.406)  # RGB in 0..1, of ImageNet
IMAGE_STD = (0.229, 0.224, 0.225)


def pictures_in(folder: Path) -> list[Path]:
    """The files in `folder` with one of SUFFIXES, sorted by name; hidden ones are left out.

    Raises FileNotFoundError where there are none.
    """
    pictures = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not pictures:
        raise FileNotFoundError(f"{folder}: no pictures ({' '.join(SUFFIXES)})")
    return pictures


def read_rgb(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The picture as [H, W, 3] RGB, as `to_rgb` makes it; the first one of an animation.

    Raises ValueError naming the file where it is unreadable or, if given, not of `size`.
    """
    return read_pixels(path, size, to_rgb)


def read_pixels(
    path: str | Path,
    size: tuple[int, int] | None = None,
    convert: Callable[[Image.Image], Image.Image] | None = None,
) -> NDArray[Any]:
    """The pixels of a picture file after `convert`, or as they are stored.

    Raises ValueError naming the file where it is unreadable or, if given, not of `size`.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(
                    f"{picture.height} x {picture.width} pixels, expected at most {MAX_PIXELS}"
                )
            pixels = np.array(convert(picture) if convert else picture)
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise ValueError(f"{path}: not a readable image ({error})") from error
    if size is not None and pixels.shape[:2] != tuple(size):
        raise ValueError(
            f"{path}: expected {size[0]} rows x {size[1]} columns,"
            f" got {pixels.shape[0]} x {pixels.shape[1]}"
        )
    return pixels


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture as one sees it: turned as its EXIF says, what is transparent over white,
    16 bits of grey brought to 8. Raises ValueError for pixels without a known range."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        return _grey_to_rgb(np.asarray(picture))
    if picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture.convert("RGBA"))
    return picture.convert("RGB")


def rgb_array(image: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
    """A PIL image or an array, checked, as [H, W, 3] uint8."""
    pixels = np.asarray(to_rgb(image) if isinstance(image, Image.Image) else image)
    if pixels.dtype != np.uint8:
        raise TypeError(f"image: expected uint8, got {pixels.dtype}")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"image: expected shape [H, W, 3], got {pixels.shape}")
    return pixels


def preprocess(
    images: Sequence[NDArray[np.uint8] | Image.Image], config: MaskFormerConfig
) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Images of any sizes (PIL, or [H, W, 3] uint8 RGB) as the input of a model of `config`.

    Each is resized to `short_side`, less where its long side would exceed `long_side`. Returns
    pixel_values [B, 3, H, W] and pixel_mask [B, H, W] of `batch_images`, and the images' own sizes.
    """
    resized, sizes = [], []
    for image in map(rgb_array, images):
        height, width = image.shape[:2]
        scale = fitting_scale((height, width), config.short_side, config.long_side)
        chw = torch.tensor(image).permute(2, 0, 1)  # [3, H, W]
        resized.append(resize_image(chw, scaled_size((height, width), scale)))
        sizes.append((height, width))
    pixel_values, pixel_mask = batch_images(
        resized, mean=config.image_mean, std=config.image_std, size_divisor=config.size_divisor
    )
    return pixel_values, pixel_mask, sizes


def fitting_scale(size: Sequence[int], short_side: int, long_side: int | None = None) -> float:
    """Factor to `short_side`, less where the long side would exceed `long_side`."""
    short, long = sorted(size)
    scale = short_side / short
    return scale if long_side is None else min(scale, long_side / long)


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Both sides times `scale`, rounded, at least 1."""
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Image [3, H, W] uint8 at another size, bilinear with antialiasing."""
    if tuple(image.shape[1:]) == size:
        return image
    resized = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return to_uint8(resized)


def normalize(
    image: Tensor, mean: Sequence[float] = IMAGE_MEAN, std: Sequence[float] = IMAGE_STD
) -> Tensor:
    """Image [3, H, W] uint8 as float32 with the channels' mean and deviation (0..1) removed."""
    offset = torch.tensor(mean)[:, None, None]
    return (image.float() / 255 - offset) / torch.tensor(std)[:, None, None]


def batch_images(
    images: Sequence[Tensor],
    *,
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
    size_divisor: int = 32,
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Images [3, H, W] uint8 of any sizes in one tensor, normalised, padded at the bottom right.

    The sides are `size`, by default the largest among the images, rounded up to a multiple of
    `size_divisor`. Returns pixel_values [B, 3, H, W] float32, 0 in the padding, and pixel_mask
    [B, H, W] bool, True on the images.
    """
    if not images:
        raise ValueError("images: expected at least one, got none")
    largest = [max(image.shape[axis] for image in images) for axis in (1, 2)]
    sides = size or largest
    if any(side < least for side, least in zip(sides, largest, strict=True)):
        raise ValueError(f"size: expected at least {tuple(largest)}, got {size}")
    height, width = (-(-side // size_divisor) * size_divisor for side in sides)
    pixel_values = torch.zeros(len(images), 3, height, width)
    pixel_mask = torch.zeros(len(images), height, width, dtype=torch.bool)
    for row, image in enumerate(images):
        _, h, w = image.shape
        pixel_values[row, :, :h, :w] = normalize(image, mean, std)
        pixel_mask[row, :h, :w] = True
    return pixel_values, pixel_mask


def to_uint8(image: Tensor) -> Tensor:
    """Rounded and clamped to 0..255."""
    return image.round().clamp(0, 255).to(torch.uint8)


def _grey_to_rgb(values: NDArray[Any]) -> Image.Image:
    """Grey [H, W] of 16 bits as RGB of 8."""
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255 * GREY_STEP:
        raise ValueError(f"expected grey values 0..{255 * GREY_STEP}, got {values.dtype}")
    return Image.fromarray((values / GREY_STEP).round().astype(np.uint8)).convert("RGB")
