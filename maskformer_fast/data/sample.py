"""PanopticSample: one image with its targets, as every data set here returns it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class PanopticSample:
    """One image and which of its targets each pixel belongs to."""

    image: Tensor  # [3, H, W] uint8, RGB
    segments: Tensor  # [H, W] int16, index of the pixel's target, -1 void
    labels: Tensor  # [T] int64, class of each target
    image_id: int
    file_name: str
