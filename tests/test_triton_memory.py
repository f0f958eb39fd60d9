"""What the Triton launchers touch: nothing outside their tensors, and all of those past 2^31."""

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backends import interpreted

pytest.importorskip("triton")

from maskformer_fast.kernels import mask_logits, mask_loss, matching_cost

STRIDE = 1 << 27  # elements between channels: the 17th lies past 2^31
CHANNELS = 17
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # since Python 3.13

pytestmark = pytest.mark.skipif(not interpreted(), reason="it needs Triton's interpreter")


def test_nothing_outside_the_tensors_is_touched():
    script = Path(__file__).with_name("guarded_memory.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout == "inside\n", done.stderr


@pytest.fixture
def far_features():
    """[1, C, 4, 8] float32 whose last channel begins at element 2^31; memory that is not touched
    is not there."""
    memory = mmap.mmap(-1, 4 * STRIDE * CHANNELS, flags=mmap.MAP_PRIVATE | NO_RESERVE)
    flat = torch.frombuffer((ctypes.c_char * len(memory)).from_buffer(memory), dtype=torch.float32)
    return flat.as_strided((1, CHANNELS, 4, 8), (STRIDE * CHANNELS, STRIDE, 8, 1)).normal_()


def test_channels_past_two_billion_elements(far_features):
    near = far_features.contiguous()
    classes, queries = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, CHANNELS)
    pixels = torch.randint(-1, 2, (1, 4, 8)).short()
    rest = (torch.zeros(1, 2).long(), torch.tensor([2]).int(), pixels)
    rest += (1.0, 20.0, 1.0, 0.25, 2.0, False)
    expected = matching_cost.from_embeddings(classes, queries, near, *rest)
    assert matching_cost.from_embeddings(classes, queries, far_features, *rest).equal(expected)
    classes = torch.randn(1, CHANNELS, 4)
    expected = matching_cost.from_logits(classes, near, *rest)
    assert matching_cost.from_logits(classes, far_features, *rest).equal(expected)
    expected = mask_logits.forward(queries[0], near, False)
    assert mask_logits.forward(queries[0], far_features, False).equal(expected)
    grad = torch.randn_like(expected)
    found = mask_logits.backward(grad, queries[0], far_features, False)
    assert all(map(torch.equal, found, mask_logits.backward(grad, queries[0], near, False)))


@pytest.mark.parametrize("by_target", [False, True])
def test_logits_past_two_billion_elements(far_features, by_target):
    logits = far_features if by_target else far_features.transpose(0, 1)
    pixels = torch.randint(-1, CHANNELS, (1, 8, 16)).short()
    valid = torch.ones(logits.shape[:2], dtype=torch.bool)
    rest = (pixels, valid, 0.25, 2.0, False, True)
    found = mask_loss.forward(logits, *rest)
    assert all(map(torch.equal, found, mask_loss.forward(logits.contiguous(), *rest)))
