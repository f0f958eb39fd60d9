"""What the compiled ops hold besides inputs and results: the high-water mark of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from measure import Entrant, peak_extra_bytes
from op_cases import short
from torch import Tensor

import maskformer_fast
from maskformer_fast import ops

LIMIT = 32e6  # bytes
OPS = ("mask_logits", "semantic_map", "panoptic_map", "instance_masks")
missing = [reason for op in OPS if (reason := maskformer_fast.backends()[op]["cpu"])]
pytestmark = pytest.mark.skipif(bool(missing), reason=str(missing))


def workspace(call: Callable[[], Any]) -> float:
    """Peak bytes of a call, less those of its results."""
    results = call()  # also loads and sets up what the first call does
    results = results if isinstance(results, tuple) else (results,)
    returned = sum(t.numel() * t.element_size() for t in results if isinstance(t, Tensor))
    del results
    peak = peak_extra_bytes(Entrant(call), torch.device("cpu"))
    if peak is None:
        pytest.skip("the system does not tell the high-water mark of resident memory")
    return peak - returned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize("op", [ops.mask_logits, ops.mask_probs])
def test_mask_logits(op: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """The features alone would be 105 MB as float32, the logits 41 MB."""
    queries, features = torch.randn(4, 100, 256).to(dtype), torch.randn(4, 256, 160, 160).to(dtype)
    leaves = [t.requires_grad_() for t in (queries, features)]
    result = op(*leaves, backend="cpu")
    grad = torch.ones_like(result)
    assert workspace(lambda: op(queries, features, backend="cpu")) < LIMIT
    assert workspace(lambda: torch.autograd.grad(result, leaves, grad, retain_graph=True)) < LIMIT
