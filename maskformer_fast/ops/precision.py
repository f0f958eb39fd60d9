"""Full float32 precision of products, whatever the caller has allowed elsewhere."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

# Not set_float32_matmul_precision: it raises once a caller has used these newer settings.
MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


_lock = threading.Lock()
_inside = 0  # how many calls rely on the setting, in all threads
_allowed: list[str] = []  # what it was before the first of them


@contextlib.contextmanager
def ieee_float32(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32 and no bfloat16 products inside.

    The setting is the process's: of calls that overlap, the last to leave restores it.
    """
    torch.get_num_threads()  # else a new thread's first products round by a default number
    _enter()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _allowed
    with _lock:
        _inside += 1
        if _inside == 1:
            _allowed = [backend.fp32_precision for backend in MATMULS]
            for backend in MATMULS:
                backend.fp32_precision = "ieee"


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            for backend, precision in zip(MATMULS, _allowed, strict=True):
                backend.fp32_precision = precision
