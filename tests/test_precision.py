"""ieee_float32: the setting is the process's, so calls that overlap must not undo each other's."""

import contextlib

import pytest
import torch

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
