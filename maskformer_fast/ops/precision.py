"""Full float32 precision inside the references, whatever the caller has allowed elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

# Not set_float32_matmul_precision: it raises once a caller has used these newer settings.
MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


@contextlib.contextmanager
def ieee_float32(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32 and no bfloat16 products inside."""
    allowed = [backend.fp32_precision for backend in MATMULS]
    for backend in MATMULS:
        backend.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(MATMULS, allowed, strict=True):
            backend.fp32_precision = precision
