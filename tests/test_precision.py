"""ieee_float32: the setting is the process's: calls that overlap must not undo each other's, and
none may leave anything behind."""

import contextlib

import pytest
import torch

from maskformer_fast.ops import mask_logits
from maskformer_fast.ops.precision import MATMULS, ieee_float32


def settings():
    return [backend.fp32_precision for backend in MATMULS]


@pytest.fixture
def lower_precision():
    before = settings()
    for backend, precision in zip(MATMULS, ("tf32", "bf16"), strict=True):
        backend.fp32_precision = precision
    yield
    for backend, precision in zip(MATMULS, before, strict=True):
        backend.fp32_precision = precision


def test_the_last_of_overlapping_calls_restores_the_setting(lower_precision):
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(ieee_float32(torch.device("cpu")))
    second.enter_context(ieee_float32(torch.device("cpu")))
    first.close()
    assert settings() == ["ieee", "ieee"]
    second.close()
    assert settings() == ["tf32", "bf16"]


def test_an_error_inside_restores_the_setting(lower_precision):
    with pytest.raises(ZeroDivisionError), ieee_float32(torch.device("cpu")):
        1 / 0  # noqa: B018
    assert settings() == ["tf32", "bf16"]


@pytest.fixture
def nothing_set():
    before = settings()
    for backend in MATMULS:
        backend.fp32_precision = "none"
    yield torch.backends
    torch.backends.fp32_precision = "none"
    for backend, precision in zip(MATMULS, before, strict=True):
        backend.fp32_precision = precision


@pytest.mark.parametrize(("first", "second"), [("tf32", "ieee"), ("ieee", "tf32")])
def test_products_still_follow_the_setting_that_they_inherit(nothing_set, first, second):
    nothing_set.fp32_precision = first
    mask_logits(torch.ones(1, 1, 1), torch.ones(1, 1, 1, 1), backend="reference")
    assert settings() == [first, first]
    nothing_set.fp32_precision = second
    assert settings() == [second, second]


def test_a_setting_of_their_own_stays_their_own(nothing_set):
    nothing_set.fp32_precision = "tf32"
    for backend in MATMULS:
        backend.fp32_precision = "ieee"
    mask_logits(torch.ones(1, 1, 1), torch.ones(1, 1, 1, 1), backend="reference")
    nothing_set.fp32_precision = "none"
    assert settings() == ["ieee", "ieee"]


def test_a_setting_lowered_during_a_call_is_no_concern_of_the_next(nothing_set):
    with ieee_float32(torch.device("cpu")):
        nothing_set.fp32_precision = "tf32"
        with ieee_float32(torch.device("cpu")):
            assert settings() == ["ieee", "ieee"]
    assert settings() == ["tf32", "tf32"]
