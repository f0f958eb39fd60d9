"""mask_logits where a kernel could go wrong: edges of tiles, splits of the cells, layouts."""

import contextlib

import pytest
import torch
from backends import device_of, each_backend
from op_cases import TOLERANCE, short
from test_mask_logits import inputs

from maskformer_fast.ops.mask_logits import _backward, _forward, reference, reference_backward

pytest.importorskip("triton")

from maskformer_fast.kernels.launch import Config, table, using
from maskformer_fast.kernels.mask_logits import CELLS_OF_SPLIT, FEW_ROWS

SMALL = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_P": 16, "BLOCK_K": 16}
KERNELS = {"product": ("BLOCK_M", "BLOCK_P", "BLOCK_K"), "product_over_pixels": tuple(SMALL)[:3]}
THREE_SPLITS = {  # channels and grid, which 16 divides or not
    "aligned": (16, (48, 2 * CELLS_OF_SPLIT // 48 + 1)),
    "unaligned": (9, (60, 2 * CELLS_OF_SPLIT // 60 + 3)),
}

each_triton = each_backend("mask_logits", of=("triton",))
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=short)


@contextlib.contextmanager
def small_tiles():
    with contextlib.ExitStack() as stack:
        for kernel, names in KERNELS.items():
            for size_class in table()["sm_80"][f"mask_logits.{kernel}"]:
                blocks = {name: SMALL[name] for name in names}
                stack.enter_context(
                    using(Config(f"mask_logits.{kernel}", size_class, blocks, 4, 1))
                )
        yield


def check_all(backend, queries, features, grad):
    """Results and gradients of the four calls against the float64 reference."""
    tolerance = TOLERANCE[queries.dtype]
    exact = [t.double() for t in (queries, features, grad)]
    for sigmoid in (False, True):
        got = _forward(queries, features, sigmoid, backend)
        torch.testing.assert_close(got.double(), reference(*exact[:2], sigmoid), **tolerance)
        gradients = _backward(grad, queries, features, sigmoid, backend)
        expected = reference_backward(exact[2], *exact[:2], sigmoid)
        for one, other in zip(gradients, expected, strict=True):
            scale = float(other.abs().max())  # sums of many products: as exact as their size allows
            torch.testing.assert_close(one.double() / scale, other / scale, **tolerance)


@each_triton
@each_dtype
@pytest.mark.parametrize("side", [15, 16, 17, 33])
def test_edges_of_small_tiles(backend, dtype, side):
    queries, features = inputs((2, side, side, 3, side), dtype, device_of(backend))
    grad = torch.randn(2, side, 3, side).to(queries)
    with small_tiles():
        check_all(backend, queries, features, grad)


@each_triton
@each_dtype
@pytest.mark.parametrize("rows", [FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize(("channels", "grid"), THREE_SPLITS.values(), ids=THREE_SPLITS)
def test_sums_over_several_splits_of_the_cells(backend, dtype, rows, channels, grid):
    assert 2 * CELLS_OF_SPLIT < grid[0] * grid[1] < 3 * CELLS_OF_SPLIT
    queries, features = inputs((1, rows, channels, *grid), dtype, device_of(backend))
    check_all(backend, queries, features, torch.randn(1, rows, *grid).to(queries))


@each_triton
def test_gradients_that_are_expanded_or_have_gaps(backend):
    queries, features = inputs((2, 5, 7, 6, 9), device=device_of(backend))
    wide = torch.randn(2, 5, 6, 12).to(queries)[..., :9]
    for grad in (queries.new_ones(()).expand(2, 5, 6, 9), wide):
        check_all(backend, queries, features, grad)


@each_triton
def test_no_cells_and_no_channels(backend):
    device = device_of(backend)
    for channels, side in ((3, 0), (0, 4)):
        queries = torch.ones(2, 5, channels, device=device)
        features = torch.ones(2, channels, side, side, device=device)
        assert not _forward(queries, features, False, backend).any()
        gradients = _backward(
            torch.ones(2, 5, side, side).to(queries), queries, features, False, backend
        )
        assert [g.shape for g in gradients] == [queries.shape, features.shape]
        assert not any(g.any() for g in gradients)
