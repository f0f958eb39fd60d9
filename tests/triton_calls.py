"""Calls of the Triton launchers that together start every kernel with every configuration.

The tensors are small and on the CPU: what is compiled depends on dtypes, layouts, options and
classes of sizes only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from maskformer_fast.kernels import mask_logits

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Calls = list[Callable[[], object]]


def calls_of_mask_logits() -> Calls:
    calls: Calls = []
    for dtype in DTYPES:
        queries = torch.zeros(2, 100, 256, dtype=dtype)
        features = torch.zeros(2, 256, 16, 16, dtype=dtype)
        for apply_sigmoid in (False, True):
            calls.append(
                lambda q=queries, f=features, s=apply_sigmoid: mask_logits.forward(q, f, s)
            )
    return calls


CALLS = {"mask_logits": calls_of_mask_logits()}
