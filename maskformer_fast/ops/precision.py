"""Full float32 precision inside the references, whatever the caller has allowed elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def ieee_float32(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32 and no bfloat16 products inside."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(allowed)
