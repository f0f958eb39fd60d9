"""MaskFormer with its expensive parts as fused kernels.

`MaskFormer` is the model, `maskformer_fast.ops` the operations under it, each usable on its own.
"""

from maskformer_fast import ops
from maskformer_fast.config import MaskFormerConfig
from maskformer_fast.criterion import MaskFormerCriterion
from maskformer_fast.model import MaskFormer, MaskFormerOutput, PerPixelBaseline
from maskformer_fast.ops.registry import backends, use_backend
from maskformer_fast.targets import Targets

__version__ = "0.1.0"

__all__ = [
    "MaskFormer",
    "MaskFormerConfig",
    "MaskFormerCriterion",
    "MaskFormerOutput",
    "PerPixelBaseline",
    "Targets",
    "backends",
    "ops",
    "use_backend",
]
