"""Reads weights from a pickle file without executing it.

A pickle is a program that may import and call anything. Here it may build plain containers and
describe numpy arrays: the names it imports are replaced by the stand-ins below, and anything else
is refused. The stand-ins become tensors only after the whole file has been read, with numpy's
own checks of sizes; numpy's unpickling code never runs.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import torch

MAX_BYTES = 16 * 2**30
MAX_VALUES = 1_000_000  # containers and leaves: shared references could multiply without end
MAX_DEPTH = 16
NUMBER_KINDS = "biuf"


class PickledDict(dict):
    """OrderedDict, whose attributes (`_metadata`) are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


class PickledDtype:
    """numpy.dtype(code, align, copy), with the byte order in its state."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code: Any = code
        self.order: Any = "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def read(self) -> np.dtype:
        if not isinstance(self.code, str) or self.order not in ("<", ">", "=", "|"):
            raise ValueError(f"dtype {self.code!r} of byte order {self.order!r}")
        dtype = np.dtype(self.code)
        if dtype.kind not in NUMBER_KINDS:
            raise ValueError(f"dtype {self.code!r}, which is no number")
        return dtype.newbyteorder(self.order)


class PickledArray:
    """numpy.ndarray: shape, dtype, memory order and bytes, kept as they came."""

    def __init__(self, *_: object) -> None:
        self.shape: Any = ()
        self.dtype: Any = None
        self.fortran: Any = False
        self.data: Any = b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def read(self) -> torch.Tensor:
        dtype = self.dtype.read()
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        if len(data) != math.prod(self.shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {self.shape} in {len(data)} bytes")
        flat = np.frombuffer(data, dtype)
        array = flat.reshape(self.shape, order="F" if self.fortran else "C")
        return torch.from_numpy(array.astype(dtype.newbyteorder("="), order="C"))


def pickled_scalar(dtype: Any, data: Any) -> PickledArray:
    scalar = PickledArray()
    scalar.dtype, scalar.data = dtype, data
    return scalar


def pickled_buffer(data: Any, dtype: Any, shape: Any, order: str) -> PickledArray:
    array = PickledArray()
    array.data, array.dtype, array.shape, array.fortran = data, dtype, shape, order == "F"
    return array


def no_bytes() -> bytes:
    """How Python 3 writes empty bytes in old protocols."""
    return b""


def encode_latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes other bytes in old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoding {encoding!r}")
    return text.encode("latin1")


STAND_INS = {
    ("collections", "OrderedDict"): PickledDict,
    ("numpy", "dtype"): PickledDtype,
    ("numpy", "ndarray"): PickledArray,
    ("__builtin__", "bytes"): no_bytes,
    ("_codecs", "encode"): encode_latin1,
} | {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", PickledArray),
        ("multiarray", "scalar", pickled_scalar),
        ("numeric", "_frombuffer", pickled_buffer),
    )
}


class Unpickler(pickle.Unpickler):
    """Knows the stand-ins and no other global."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in STAND_INS:
            return STAND_INS[module, name]
        raise pickle.UnpicklingError(f"refused the global {module}.{name}")


class Reader:
    """Turns what the unpickler built into plain Python containers and tensors."""

    def __init__(self) -> None:
        self.values = 0

    def read(self, value: Any, depth: int = 0) -> Any:
        self.values += 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_VALUES} values or {MAX_DEPTH} levels")
        if isinstance(value, dict):
            return {self.key(k): self.read(v, depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.read(v, depth + 1) for v in value]
        if isinstance(value, PickledArray):
            return value.read()
        if value is None or isinstance(value, (str, bytes, bool, int, float)):
            return value
        raise ValueError(f"a value of type {type(value).__name__}")

    def key(self, key: Any) -> str | int:
        if isinstance(key, (str, int)):
            return key
        raise ValueError(f"a dictionary key of type {type(key).__name__}")


def read_pickle(path: str | Path) -> Any:
    """The contents of a pickle file: dicts, lists, numbers, text, and tensors for numpy arrays.

    Errors: ValueError naming the file, and the global that was refused or what is wrong with it.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path}: {size} bytes, more than the {MAX_BYTES} that are read")
    data = path.read_bytes()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if "PUT" in opcode.name and isinstance(argument, int) and argument > size:
                raise ValueError(f"a memo of {argument} entries in {size} bytes")
        return Reader().read(Unpickler(io.BytesIO(data), encoding="latin1").load())
    except Exception as error:  # a malformed pickle can raise anything
        raise ValueError(f"{path}: not a plain pickle of numpy weights: {error}") from error
