"""Finds what would make the host wait for a GPU, without a GPU.

Code runs on device "meta", whose tensors have no values: what must read one raises there, as the
same code would wait on a GPU. `no_waiting` also refuses what a GPU would wait for and "meta" lets
pass: results whose shape depends on values, copies between devices, and tensors that are made on
a device from values of the host.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskformer_fast import Targets

DEVICE = "meta"
FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor)
READ_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
INDEXED = ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_")
MASKS = (torch.bool, torch.uint8)


class WouldWait(AssertionError):
    """The host would wait for the GPU."""


class _Operators(TorchDispatchMode):
    """Refuses operators that need values, and those between devices; counts all."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        if needs_values(func, args):
            raise WouldWait(f"{func} reads values")
        result = func(*args, **kwargs)
        # A tensor of the host without dimensions is passed to a kernel as a number.
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()]
        tensors += [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if len({x.device.type for x in tensors}) > 1:
            raise WouldWait(f"{func} copies between devices")
        return result


def needs_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the operator's result has a shape, or is a number, that depends on values."""
    if func.overloadpacket.__name__ in INDEXED:  # by mask only
        return any(isinstance(x, Tensor) and x.dtype in MASKS for x in args[1])
    return not READ_VALUES.isdisjoint(func.tags)


class _Constructors(TorchFunctionMode):
    """Refuses tensors made on the device from values of the host."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in FROM_HOST and result.device.type == DEVICE:
            raise WouldWait(f"{func.__name__} copies values of the host")
        return result


@contextlib.contextmanager
def no_waiting() -> Iterator[_Operators]:
    """Refuses inside, also in backward, whatever would make the host wait for DEVICE."""
    with _Constructors(), _Operators() as operators:
        yield operators


@contextlib.contextmanager
def device_like_cuda(device: str = DEVICE) -> Iterator[None]:
    """Optimisers and clipping take `device` for one with foreach kernels and capturable steps."""
    places = [
        (sys.modules[module], name)
        for module, name in (
            ("torch.utils._foreach_utils", "_get_foreach_kernels_supported_devices"),
            ("torch.optim.optimizer", "_get_foreach_kernels_supported_devices"),
            ("torch.optim.adam", "_get_capturable_supported_devices"),
        )
    ]
    before = [getattr(module, name) for module, name in places]
    for (module, name), found in zip(places, before, strict=True):
        setattr(module, name, lambda *a, found=found, **k: [*found(*a, **k), device])
    try:
        yield
    finally:
        for (module, name), found in zip(places, before, strict=True):
            setattr(module, name, found)


def on_device(value: Any) -> Any:
    """A module (changed in place), tensor or Targets on DEVICE, where it loses its values."""
    assert isinstance(value, nn.Module | Tensor | Targets)
    return value.to(DEVICE)
