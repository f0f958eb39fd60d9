"""Calls of the Triton launchers that together start every kernel with every configuration.

The tensors are small and on the CPU: what is compiled depends on dtypes, layouts, options and
classes of sizes only.
"""

from __future__ import annotations

import torch

from maskformer_fast.kernels import mask_logits

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
QUERIES, CHANNELS, GRID = 100, 256, (16, 16)


def call_mask_logits(dtype: torch.dtype) -> None:
    for rows in (QUERIES, mask_logits.FEW_ROWS):
        queries = torch.zeros(2, rows, CHANNELS, dtype=dtype)
        features, grad = (torch.zeros(2, c, *GRID, dtype=dtype) for c in (CHANNELS, rows))
        for layout in (features, features.contiguous(memory_format=torch.channels_last)):
            for with_sigmoid in (False, True):
                mask_logits.forward(queries, layout, with_sigmoid)
                mask_logits.backward(grad, queries, layout, with_sigmoid)


CALLS = {"mask_logits": call_mask_logits}
