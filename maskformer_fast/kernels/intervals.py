"""Outputs of a bilinear upsampling by the cells they lie between, in Triton.

Interval g of an axis holds the outputs between cells g - 1 and g, g in [0, cells]. With
numerator (2 i + 1) cells - outputs - 2 outputs (g - 1) its outputs i are those from 0 to below
2 outputs, and numerator / (2 outputs) is the weight of cell g. Beyond the grid's edge there is no
cell: all weight goes to the other one.
"""

import triton
import triton.language as tl


@triton.jit
def start_of(interval, cells, outputs):
    """First output of an interval, and its numerator."""
    ahead = outputs.to(tl.int64) * (2 * interval - 1) - cells
    first = (tl.maximum(ahead, 0) + (2 * cells - 1)) // (2 * cells)
    return first.to(tl.int32), (2 * cells * first - ahead).to(tl.int32)


@triton.jit
def ratio_of(cells, outputs):
    """Outputs of an interval, at least; twice the remainder; outputs of the interval 0."""
    of_first = (tl.maximum(outputs - cells, 0) + (2 * cells - 1)) // (2 * cells)
    return outputs // cells, 2 * (outputs % cells), of_first


@triton.jit
def count_of(interval, first, numerator, outputs, ratio):
    """How many outputs an interval has, from its first one and that one's numerator."""
    whole, rest, of_first = ratio
    count = tl.where(interval == 0, of_first, whole + (numerator < rest).to(tl.int32))
    return tl.minimum(count, outputs - first)


@triton.jit
def weights_of(numerator, interval, cells, outputs):
    """Weight of the cell after an interval's first output, and what every further output adds."""
    unit = 0.5 / outputs.to(tl.float32)
    between = (interval > 0) & (interval < cells)
    beyond = tl.where(interval == 0, 1.0, 0.0)  # all or nothing beyond the edges
    weight = tl.where(between, numerator.to(tl.float32) * unit, beyond)
    return weight, tl.where(between, (2 * cells).to(tl.float32) * unit, 0.0)
