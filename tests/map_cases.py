"""Inputs and comparisons shared by the tests of the three maps and of the post-processing."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from backends import device_of
from torch import Tensor

from maskformer_fast.ops.semantic_map import class_score_bands
from maskformer_fast.ops.upsample import upsample

TIE = 1e-5  # two scores within this, relative to the larger, may change places by rounding


def class_logits_of(*queries: tuple[int, float], num_classes: int) -> Tensor:
    """Logits [1, Q, K+1] of queries (label, its probability); the rest is spread evenly."""
    probs = torch.empty(len(queries), num_classes + 1, dtype=torch.float64)
    for row, (label, score) in zip(probs, queries, strict=True):
        row.fill_((1 - score) / num_classes)
        row[label] = score
    return probs.log().float()[None]


def mask_logits_of(*rows: list[float]) -> Tensor:
    """Logits [1, Q, 1, w] of one row of mask probabilities per query."""
    return torch.tensor(rows, dtype=torch.float64).logit().float()[None, :, None]


def random_predictions(
    b: int, q: int, k: int, h: int, w: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Class logits [b, q, k+1] and mask logits [b, q, h, w] of confident, differing queries."""
    generator = torch.Generator().manual_seed(seed)
    class_logits = 3 * torch.randn(b, q, k + 1, generator=generator)
    mask_logits = 3 * torch.randn(b, q, h, w, generator=generator)
    return class_logits.to(dtype), mask_logits.to(dtype)


def run_on(backend: str, op: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """op by a backend, of tensors on the CPU and with its result there: a tensor or a tuple."""

    def moved(value: Any, device: str) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    device = device_of(backend)
    result = op(
        *(moved(value, device) for value in arguments),
        **{name: moved(value, device) for name, value in options.items()},
        backend=backend,
    )
    if isinstance(result, Tensor):
        return result.cpu()
    fields = [field.cpu() for field in result]
    return type(result)(*fields) if hasattr(result, "_fields") else tuple(fields)


def interpolate(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[Q, h, w] -> [Q, H, W] in float64, by PyTorch's own bilinear upsampling."""
    return F.interpolate(x.double()[None], size=size, mode="bilinear", align_corners=False)[0]


def is_tie(scores: Tensor) -> Tensor:
    """scores [n, H, W] -> bool [H, W]: the two best lie within rounding of each other."""
    if len(scores) == 1:
        return torch.zeros(scores.shape[1:], dtype=torch.bool)
    best, second = scores.topk(2, 0).values
    return best - second <= TIE * best.abs()


def near_ties(
    score: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    dialect: str,
    region: Tensor | None,
    kept: Tensor,
) -> Tensor:
    """bool [H, W] of one image: rounding may decide which query of panoptic_map wins a pixel, or
    whether the pixel is inside that query's mask."""
    x = mask_logits.double()[None]
    if dialect == "transformers":
        probs = upsample(x.sigmoid().nan_to_num(nan=0.0), size, region)[0]
        own = score[:, None, None] * probs
    else:
        own = probs = upsample(x, size, region)[0].sigmoid().nan_to_num(nan=0.0)
    edge = ((own - 0.5).abs() < 1e-5)[kept].any(0)
    return is_tie((score[:, None, None] * probs)[kept]) | edge


def exact_scores(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    order: str,
    region: Tensor | None,
) -> Tensor:
    """[K, H, W]: the scores of semantic_map's reference in float64, of a batch of one image."""
    extent = None if region is None else region[0]
    bands = class_score_bands(
        class_logits[0].double(), mask_logits[0].double(), size, order, extent
    )
    return torch.cat([band for _, band in bands], 1)


def assert_equal_off_ties(got: Tensor, expected: Tensor, tie: Tensor, share: float = 0.01) -> None:
    """Maps [H, W] agree wherever `tie` is False, and ties are few."""
    different = got != expected
    assert not (different & ~tie).any(), f"{int((different & ~tie).sum())} pixels differ"
    assert int(different.sum()) <= share * different.numel()


# Maps on which a shortcut through a cell's corners could go wrong, each on its grid. "many_tiles"
# is more than one tile and one strip of the C++ kernels.
GRIDS = {
    **dict.fromkeys(("noise", "smooth", "constant", "equal_queries", "checkerboard"), (9, 21)),
    **dict.fromkeys(("huge", "tiny", "saturated", "nan", "infinite"), (9, 21)),
    "one_cell": (1, 1),
    "one_row": (1, 30),
    "one_column": (30, 1),
    "many_tiles": (19, 150),
}
ADVERSARIAL = tuple(GRIDS)


def adversarial_maps(name: str, q: int) -> Tensor:
    """Mask logits [1, q, h, w]."""
    grid = GRIDS[name]
    generator = torch.Generator().manual_seed(q)
    noise = 3 * torch.randn(1, q, *grid, generator=generator)
    rows, columns = (torch.arange(cells) for cells in grid)
    if name == "smooth":
        low = 6 * torch.randn(1, q, 3, 4, generator=generator)
        return F.interpolate(low, size=grid, mode="bilinear", align_corners=True)
    if name == "constant":
        return noise[..., :1, :1].expand_as(noise).clone()
    if name == "equal_queries":
        return noise[:, :1].expand_as(noise).clone()
    if name == "checkerboard":
        sign = 1 - 2.0 * ((rows[:, None] + columns + torch.arange(q)[:, None, None]) % 2)
        return 8 * sign[None]
    scale = {"huge": 1e37, "tiny": 1e-30, "saturated": 30.0}
    if name in scale:
        return scale[name] * noise
    if name in ("nan", "infinite"):
        broken = torch.rand(noise.shape, generator=generator) < 0.05
        value = math.nan if name == "nan" else math.inf
        return torch.where(broken, value * noise, noise)
    return noise


def output_sizes(mask_logits: Tensor) -> list[tuple[int, int]]:
    """By 1, by an integer, by fractions, smaller; and along one axis up, along the other down, with
    cells that hold no pixel."""
    h, w = mask_logits.shape[-2:]
    if h * w > 1000:  # the rest is left to smaller grids
        return [(4 * h, 4 * w), (7 * h // 2, 14 * w // 3)]
    sizes = [(h, w), (4 * h, 4 * w), (7 * h // 2, 14 * w // 3), (5 * h // 9, w // 3)]
    sizes += [(4 * h + 4, w // 2), (h, 8 * w), (w // 3, 12 * h)]
    return [(max(rows, 1), max(columns, 1)) for rows, columns in sizes]


def regions(mask_logits: Tensor) -> tuple[Tensor | None, ...]:
    """All of the grid, and a part that ends within cells."""
    extent = torch.tensor(mask_logits.shape[-2:])
    return None, (extent * torch.tensor([[0.7, 0.85]]))
