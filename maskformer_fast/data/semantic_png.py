"""SemanticPng: pictures with one PNG of class labels each, as in ADE20K or Cityscapes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from maskformer_fast.data.files import existing_folder, file_under, read_label_map
from maskformer_fast.data.sample import PanopticSample
from maskformer_fast.images import pictures_in, read_rgb


class SemanticPng(Dataset[PanopticSample]):
    """Pictures NAME.jpg (.png, ...) in `images` with labels NAME.png in `labels`, sorted by name.

    images        folder of the pictures
    labels        folder of the PNG label maps: grey of 8 or 16 bits, or palette indices
    num_labels    K
    ignore_value  pixel value that is void
    label_offset  pixel value of class 0; ADE20K has 1, and 0 as its ignore value
    transform     applied to every sample

    Every class that occurs in a map is one target. A label outside 0..K-1, sizes that differ and
    unreadable files are a ValueError with the file's name.
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path,
        num_labels: int,
        *,
        ignore_value: int = 255,
        label_offset: int = 0,
        transform: Callable[[PanopticSample], PanopticSample] | None = None,
    ) -> None:
        self.image_folder = existing_folder(images)
        self.label_folder = existing_folder(labels)
        self.num_labels = num_labels
        self.ignore_value = ignore_value
        self.label_offset = label_offset
        self.transform = transform
        self.names = [path.name for path in pictures_in(self.image_folder)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> PanopticSample:
        name = self.names[index]
        pixels = read_rgb(file_under(self.image_folder, name))
        path = file_under(self.label_folder, Path(name).with_suffix(".png").name)
        values = read_label_map(path, pixels.shape[:2])  # [H, W]
        void = values == self.ignore_value
        present, target = np.unique(values[~void] - self.label_offset, return_inverse=True)
        outside = present[(present < 0) | (present >= self.num_labels)]
        if outside.size:
            raise ValueError(
                f"{path}: expected labels {self.label_offset}.."
                f"{self.label_offset + self.num_labels - 1} or {self.ignore_value}, "
                f"got {int(outside[0]) + self.label_offset}"
            )
        segments = np.full(values.shape, -1, np.int16)
        segments[~void] = target
        sample = PanopticSample(
            image=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
            segments=torch.from_numpy(segments),
            labels=torch.from_numpy(present.astype(np.int64)),
            image_id=index,
            file_name=name,
        )
        return self.transform(sample) if self.transform else sample
