import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from maskformer_fast.ops.upsample import BAND_ROWS, axes, row_bands, upsample

GRIDS = [((1, 1), (7, 9)), ((5, 7), (20, 28)), ((16, 17), (13, 3)), ((31, 8), (129, 127))]


@pytest.mark.parametrize(("grid", "size"), GRIDS, ids=str)
def test_equals_interpolate_up_and_down(grid, size):
    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(x, size), expected, rtol=0, atol=1e-12)
    got = upsample(x.float(), size)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_sampled_in_float32(dtype):
    x = torch.randn(3, 4, 5).to(dtype)
    assert torch.equal(upsample(x, (9, 9)), upsample(x.float(), (9, 9)))


def test_by_hand():
    x = torch.tensor([[0.0, 4.0]])
    assert upsample(x, (1, 4)).tolist() == [[0.0, 1.0, 3.0, 4.0]]
    assert upsample(x, (1, 4), None).tolist() == upsample(x[None], (1, 4))[0].tolist()
    half = torch.tensor([[1.0, 1.5]])  # one and a half cells: x = 1.5 (j + 0.5) / 3 - 0.5
    assert upsample(x[None], (1, 3), half).tolist() == [[[0.0, 1.0, 3.0]]]


@given(
    cells=st.integers(1, 300),
    size=st.integers(1, 2000),
    share=st.floats(0.01, 1),
    exact=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_coordinates_equal_rational_arithmetic(cells, size, share, exact):
    region = None
    extent = Fraction(cells)
    if not exact:
        region = torch.tensor([max(share * cells, 1e-3), 1.0])
        extent = Fraction(region[0].item())
    rows, _ = axes(torch.empty(cells, 1), (size, 1), region)
    for i in {0, 1 % size, size // 2, size - 1}:
        source = (i + Fraction(1, 2)) * extent / size - Fraction(1, 2)
        source = min(max(source, Fraction(0)), Fraction(math.ceil(extent) - 1))
        low, high, weight = (part[i].item() for part in rows)
        assert 0 <= low <= high <= math.ceil(extent) - 1
        assert abs(low + Fraction(weight) * (high - low) - source) <= Fraction(2**-23)


@pytest.mark.parametrize("size", [(3, 5), (6, 10), (17, 23)])
def test_region_of_whole_cells_equals_cropping(size):
    x = torch.randn(2, 3, 6, 8)
    region = torch.tensor([[4.0, 5.0], [6.0, 8.0]])
    got = upsample(x, size, region)
    assert torch.equal(got[0], upsample(x[0, :, :4, :5], size))
    assert torch.equal(got[1], upsample(x[1], size))


def test_region_reads_no_cell_beyond_it():
    x = torch.randn(1, 2, 6, 8)
    region = torch.tensor([[3.25, 4.5]])
    expected = upsample(x, (40, 50), region)
    x[:, :, 4:] = math.nan
    x[..., 5:] = math.nan
    assert torch.equal(upsample(x, (40, 50), region), expected)


@pytest.mark.parametrize("region", [None, torch.tensor([4.5, 6.0])])
def test_row_bands_equal_the_whole(region):
    x = torch.randn(3, 5, 7)
    size = (2 * BAND_ROWS + 3, 20)
    bands = list(row_bands(x, size, region))
    whole = upsample(x[None], size, None if region is None else region[None])[0]
    assert torch.equal(torch.cat([band for _, band in bands], 1), whole)
    assert [rows.stop - rows.start for rows, _ in bands] == [BAND_ROWS, BAND_ROWS, 3]


def test_gradient():
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    region = torch.tensor([[2.5, 4.0], [3.0, 1.5]])
    assert gradcheck(lambda v: upsample(v, (5, 6)), x)
    assert gradcheck(lambda v: upsample(v, (5, 6), region), x)


def test_no_images():
    assert upsample(torch.empty(0, 2, 3, 4), (5, 6), torch.empty(0, 2)).shape == (0, 2, 5, 6)
