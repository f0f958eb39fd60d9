"""How the launchers of the compiled kernels name a tensor's memory."""

import torch
from torch import Tensor

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # csrc/core/float_types.hpp


def float_type(x: Tensor) -> int:
    """The number by which the compiled module knows the tensor's dtype."""
    return _TYPES[x.dtype]


def address(x: Tensor | None) -> int:
    """Where the tensor's memory starts; 0 for none."""
    return 0 if x is None else x.data_ptr()
