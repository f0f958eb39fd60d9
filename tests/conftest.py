"""What must happen before any test module is imported, and before every test."""

import os
import sys
import zlib

import pytest
import torch

if not torch.cuda.is_available():  # backend "triton" in Triton's interpreter, on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")

try:
    import torchvision  # noqa: F401
except Exception:  # absent, or built for another torch: transformers must not try it either
    sys.modules["torchvision"] = None  # type: ignore[assignment]

EMULATION_SEED = "MASKFORMER_EMULATION_SEED"


@pytest.fixture(autouse=True)
def _order_of_emulated_threads(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every test runs emulated CUDA threads in an order of its own; an error names its seed."""
    if EMULATION_SEED not in os.environ:
        seed = 1 + zlib.crc32(request.node.nodeid.encode()) % 1000
        monkeypatch.setenv(EMULATION_SEED, str(seed))
