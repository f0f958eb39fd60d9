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
from maskformer_fast.ops.panoptic_map import DIALECTS
from maskformer_fast.ops.semantic_map import ORDERS

LIMIT = 32e6  # bytes
missing = maskformer_fast.backends()["mask_logits"]["cpu"]
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))


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


@pytest.fixture(scope="module")
def coco() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class logits, mask logits, and queries and features of an image of COCO."""
    class_logits = 3 * torch.randn(1, 100, 134)
    queries, features = torch.randn(1, 100, 256) / 8, torch.randn(1, 256, 200, 336)
    return class_logits, ops.mask_logits(queries, features), queries, features


SIZE = (800, 1333)


@pytest.mark.parametrize("order", ORDERS)
def test_semantic_map(coco: tuple[Tensor, ...], order: str) -> None:
    class_logits, mask_logits, *_ = coco
    options = {"order": order, "return_scores": True, "backend": "cpu"}
    assert workspace(lambda: ops.semantic_map(class_logits, mask_logits, SIZE, **options)) < LIMIT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("order", ORDERS)
def test_semantic_map_from_features(
    coco: tuple[Tensor, ...], order: str, dtype: torch.dtype
) -> None:
    class_logits, _, *embeddings = (t.to(dtype) for t in coco)
    options = {"order": order, "return_scores": True, "backend": "cpu"}

    def call() -> Any:
        return ops.semantic_map_from_features(class_logits, *embeddings, SIZE, **options)

    assert workspace(call) < LIMIT


@pytest.mark.parametrize("dialect", DIALECTS)
def test_panoptic_map(coco: tuple[Tensor, ...], dialect: str) -> None:
    class_logits, mask_logits, *_ = coco
    options = {"thing_classes": range(80), "score_threshold": 0.1, "dialect": dialect}

    def call() -> Any:
        return ops.panoptic_map(class_logits, mask_logits, SIZE, backend="cpu", **options)

    assert workspace(call) < LIMIT


def test_instance_masks(coco: tuple[Tensor, ...]) -> None:
    class_logits, mask_logits, *_ = coco
    assert workspace(lambda: ops.instance_masks(class_logits, mask_logits, SIZE, backend="cpu")) < (
        LIMIT
    )
