"""Weights as detectron2 saves MaskFormer; there is no configuration beside them."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from maskformer_fast.checkpoints.report import translate
from maskformer_fast.checkpoints.structure import structure
from maskformer_fast.checkpoints.tables import D2_PIXELS, DETECTRON2
from maskformer_fast.config import MaskFormerConfig

# The first release had the pixel decoder's parts directly under sem_seg_head.
OLD_PIXEL_DECODER = re.compile(r"^sem_seg_head\.(?!pixel_decoder\.|predictor\.)")


def from_detectron2(
    tensors: Mapping[str, Tensor], source: str = "checkpoint", **overrides: Any
) -> tuple[MaskFormerConfig, dict[str, Tensor]]:
    """detectron2's tensors -> our configuration, with sizes read off them, and our tensors.

    `overrides` are fields of MaskFormerConfig, for what tensors do not show (`id2label`,
    `thing_classes`, `num_heads` if not 8, ...). Errors: ValueError for names that no rule knows.
    """
    named = {OLD_PIXEL_DECODER.sub(D2_PIXELS, name): tensor for name, tensor in tensors.items()}
    ours = translate(named, DETECTRON2, source)
    return MaskFormerConfig(**(structure(ours, source) | overrides)), ours
