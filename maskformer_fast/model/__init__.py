"""The model: backbones, pixel decoders, transformer, and MaskFormer itself."""

from maskformer_fast.model.maskformer import MaskFormer
from maskformer_fast.model.output import MaskFormerOutput
from maskformer_fast.model.per_pixel import PerPixelBaseline

__all__ = ["MaskFormer", "MaskFormerOutput", "PerPixelBaseline"]
