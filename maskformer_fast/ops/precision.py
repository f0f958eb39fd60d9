"""Full float32 precision of products, whatever the caller has allowed elsewhere."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

# Not set_float32_matmul_precision: it raises once a caller has used these newer settings.
MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
FULL = ("ieee", "none")  # none: nobody has allowed less

_lock = threading.Lock()
_inside = 0  # how many calls rely on the setting, in all threads
_allowed: dict[Any, str] = {}  # by entry of MATMULS: the lower precision that they replaced


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
    global _inside
    with _lock:
        _inside += 1
        for matmul in MATMULS:
            if matmul.fp32_precision not in FULL:
                _allowed[matmul] = matmul.fp32_precision
                matmul.fp32_precision = "ieee"


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            for matmul, precision in _allowed.items():
                # "none" inherits from torch.backends.fp32_precision and the like. What was
                # inherited must not become their own: they would not follow a later change.
                matmul.fp32_precision = "none"
                if matmul.fp32_precision != precision:
                    matmul.fp32_precision = precision
            _allowed.clear()
