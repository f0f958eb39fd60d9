"""How an op runs its CUDA kernels: on a GPU (backend "cuda") and emulated on the host.

An op writes one function of its inputs and of `Kernels`, and registers it for both:

    def on_cuda(kernels: Kernels, cost: Tensor, num_targets: Tensor) -> tuple[Tensor, ...]:
        outputs = _fake(cost, num_targets)
        workspace = kernels.workspace("linear_assignment", cost.device, *cost.shape)
        kernels("linear_assignment", cost=cost.contiguous(), ..., workspace=workspace)
        return outputs

    backends={"reference": reference, "cpu": compiled, **cuda_backends(on_cuda)}
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskformer_fast.ops.registry import cuda_module

NAN_BYTE = 0xFF  # repeated, it is a NaN of every floating-point type, and -1


class Kernels:
    """The CUDA launchers of the module that belongs to `backend`."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def workspace(self, name: str, device: torch.device, *sizes: int) -> Tensor:
        """Memory of the size that `<name>_workspace(*sizes)` asks for, on `device`.

        In the emulation it is full of NaN, so that tests notice a read of what nobody wrote.
        """
        count = getattr(cuda_module(self.backend), f"{name}_workspace")(*sizes)
        if self.backend == "cuda_emulated":
            return torch.full((count,), NAN_BYTE, dtype=torch.uint8, device=device)
        return torch.empty(count, dtype=torch.uint8, device=device)

    def __call__(self, name: str, **arguments: Any) -> None:
        """Launch `name` on the current stream of the tensors' device.

        Tensors, which must be contiguous and on one device, are passed as addresses, None as 0 and
        all else as it is. RuntimeError from a launch also names the tensors' shapes.
        """
        tensors = {key: x for key, x in arguments.items() if isinstance(x, Tensor)}
        device = next(iter(tensors.values())).device
        for key, x in tensors.items():
            if x.device != device or not x.is_contiguous():
                raise ValueError(f"{name}: {key}: expected a contiguous tensor on {device}")
        addresses = {key: x.data_ptr() for key, x in tensors.items()}
        addresses |= {key: 0 for key, x in arguments.items() if x is None}
        on_gpu = device.type == "cuda"
        stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else 0
        index = device.index if on_gpu else 0
        launcher = getattr(cuda_module(self.backend), name)
        try:
            # PyTorch's guard: on the way back it makes no context on a device that had none.
            with torch.cuda.device(device) if on_gpu else contextlib.nullcontext():
                launcher(**(arguments | addresses), device=index, stream=stream)
        except RuntimeError as error:
            shapes = ", ".join(f"{key} {tuple(x.shape)}" for key, x in tensors.items())
            raise RuntimeError(f"{error}; {shapes}") from error


def cuda_backends(on_cuda: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The entries of `register(backends=...)` for an implementation on `Kernels`."""
    return {name: functools.partial(on_cuda, Kernels(name)) for name in ("cuda", "cuda_emulated")}
