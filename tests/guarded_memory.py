"""Runs the Triton launchers on tensors beside pages that nobody may touch: reading or writing
outside a tensor ends the process. Under Triton's interpreter; test_triton_memory.py starts it."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

from maskformer_fast.kernels import mask_logits, mask_loss, matching_cost

GAP = 1 << 22  # bytes on both sides
B, L, Q, K, SIZE = 2, 2, 7, 4, (11, 13)
CHANNELS_AND_GRID = (5, (5, 7)), (16, (4, 8))  # which 16 divides or not

libc = ctypes.CDLL(None, use_errno=True)
kept: list[mmap.mmap] = []


def guarded(x: Tensor, at_end: bool) -> Tensor:
    """The same values in memory that ends, or begins, beside forbidden pages."""
    count = x.numel() * x.element_size()
    size = -(-count // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + 2 * GAP)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for forbidden in (start, start + GAP + size):
        if libc.mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(GAP), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    place = start + GAP + (size - count if at_end else 0)
    bytes_of = (ctypes.c_char * count).from_address(place)
    return torch.frombuffer(bytes_of, dtype=x.dtype).view(x.shape).copy_(x)


def run(t: int, masks: bool, dtype: torch.dtype, at_end: bool) -> None:
    def random(*shape: int) -> Tensor:
        return guarded(torch.randn(shape).to(dtype), at_end)

    if masks:
        pixels = guarded(torch.rand(B, t, *SIZE) > 0.5, at_end)
    else:
        pixels = guarded(torch.randint(-1, t, (B, *SIZE)).short(), at_end)
    labels = guarded(torch.randint(0, K - 1, (B, t)), at_end)
    counts = guarded(torch.tensor([t, max(t - 2, 0)]).int(), at_end)
    rest = (labels, counts, pixels, 1.0, 20.0, 1.0, 0.25, 2.0, masks)
    classes = random(L, B, Q, K)
    for channels, grid in CHANNELS_AND_GRID:
        queries, features = random(L, B, Q, channels), random(B, channels, *grid)
        matching_cost.from_embeddings(classes, queries, features, *rest)
        matching_cost.from_logits(classes[0], random(B, Q, *grid), *rest)
        mask_logits.forward(queries[0], features, True)
        mask_logits.backward(random(B, Q, *grid), queries[0], features, True)
    for grid in ((5, 7), (2, 3), SIZE):
        valid = guarded(torch.ones(L * B, t, dtype=torch.bool), at_end)
        mask_loss.forward(random(L * B, t, *grid), pixels, valid, 0.25, 2.0, True, True)


if __name__ == "__main__":
    for masks, dtype in ((False, torch.float32), (True, torch.float16)):
        for t in (1, 5):
            for at_end in (False, True):
                run(t, masks, dtype, at_end)
    print("inside")
