"""The Triton kernels of mask_loss: ratios of sizes, tiles that cross the edges of rows and images,
pixels that do not count, options and layouts."""

from __future__ import annotations

import pytest
import torch
from backends import device_of, each_backend
from op_cases import LAYOUTS, LOSS_TOLERANCE, TOLERANCE, random_targets, short
from torch import Tensor, tensor

pytest.importorskip("triton")

from maskformer_fast import Targets
from maskformer_fast.kernels.launch import Config, using
from maskformer_fast.ops import mask_loss

in_triton = each_backend("mask_loss", of=("triton",))
RATIOS = [  # h, w, H, W
    (4, 5, 4, 5),
    (3, 4, 6, 8),
    (3, 2, 12, 8),
    (2, 4, 3, 6),
    (5, 7, 7, 5),
    (9, 6, 3, 2),
    (1, 5, 6, 10),
    (6, 1, 2, 9),
    (1, 1, 1, 1),
    (2, 3, 1, 1),
    (2, 2, 3, 26),
    (2, 40, 3, 40),
]


def tiles(run: int, lanes: int) -> Config:
    """Programs of `run` grid rows and `lanes` lanes, instead of those of small problems."""
    return Config("mask_loss.visit", "few", {"RUN": run, "LANES": lanes}, 1, 1)


def losses_and_gradient(
    logits: Tensor, targets: Targets, backend: str, **options: object
) -> tuple[Tensor, ...]:
    """Focal, dice and the gradient of a sum in which every loss has a weight of its own."""
    logits = logits.detach().requires_grad_()
    losses = mask_loss(logits, targets, backend=backend, **options)
    weights = torch.arange(1.0, 1 + 2 * losses[0].numel(), device=logits.device)
    weights = weights.view(2, *losses[0].shape).to(losses[0].dtype)
    (gradient,) = torch.autograd.grad(losses, logits, weights.unbind())
    return *(loss.detach() for loss in losses), gradient


def assert_as_in_float64(
    logits: Tensor, targets: Targets, backend: str, **options: object
) -> tuple[Tensor, ...]:
    got = losses_and_gradient(logits, targets, backend, **options)
    truth = losses_and_gradient(logits.double(), targets, "reference", **options)
    assert got[2].dtype == logits.dtype
    tolerance = LOSS_TOLERANCE if logits.dtype == torch.float32 else TOLERANCE[logits.dtype]
    for found, expected in zip(got[:2], truth[:2], strict=True):
        torch.testing.assert_close(found.double(), expected, **LOSS_TOLERANCE)
    torch.testing.assert_close(got[2].double(), truth[2], **tolerance)
    return got


def random_inputs(
    sizes: tuple[int, int, int, int], backend: str, *, masks: bool = False
) -> tuple[Tensor, Targets]:
    """Two images of two and one targets, one layer."""
    h, w, *size = sizes
    targets = random_targets([2, 1], tuple(size), num_classes=3, masks=masks, seed=3)
    logits = 2 * torch.randn(2, 2, h, w, generator=torch.Generator().manual_seed(4))
    return logits.to(device_of(backend)), targets.to(device_of(backend))


@in_triton
@pytest.mark.parametrize("sizes", RATIOS, ids=str)
def test_any_ratio_of_sizes(backend: str, sizes: tuple[int, int, int, int]) -> None:
    assert_as_in_float64(*random_inputs(sizes, backend), backend)


@in_triton
@pytest.mark.parametrize("tile", [tiles(1, 2), tiles(2, 4), tiles(3, 16)], ids=str)
@pytest.mark.parametrize("sizes", [(5, 6, 7, 9), (4, 3, 3, 7)], ids=str)
def test_tiles_that_end_inside_rows_targets_and_images(
    backend: str, tile: Config, sizes: tuple[int, int, int, int]
) -> None:
    logits, targets = random_inputs(sizes, backend)
    with using(tile):
        assert_as_in_float64(logits, targets, backend)


@in_triton
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("ignore_void", [False, True])
def test_every_option_and_form_of_targets(
    backend: str, masks: bool, gamma: float, ignore_void: bool
) -> None:
    logits, targets = random_inputs((3, 4, 5, 10), backend, masks=masks)
    assert_as_in_float64(logits, targets, backend, gamma=gamma, ignore_void=ignore_void)


@in_triton
@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.5])
def test_any_alpha(backend: str, alpha: float) -> None:
    assert_as_in_float64(*random_inputs((2, 3, 4, 5), backend), backend, alpha=alpha)


@in_triton
def test_half_logits(backend: str) -> None:
    logits, targets = random_inputs((3, 4, 5, 10), backend)
    assert_as_in_float64(logits.half(), targets, backend)


@in_triton
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_large_logits_cost_what_they_should(backend: str, gamma: float) -> None:
    logits, targets = random_inputs((3, 4, 5, 10), backend)
    for scale in (30.0, 3000.0):
        assert_as_in_float64(scale * logits, targets, backend, gamma=gamma)


@in_triton
@pytest.mark.parametrize("masks", [False, True])
def test_logits_that_only_void_reads_may_be_nan(backend: str, masks: bool) -> None:
    """The right half is void; an upsampled NaN reaches one cell to each side."""
    device = device_of(backend)
    left = torch.zeros(1, 4, 12, dtype=torch.bool)
    left[..., :6] = True
    left[:, :2, :3] = False
    if masks:
        other = torch.zeros_like(left)
        other[:, :2, :3] = True
        targets = Targets.from_masks([torch.cat([left, other])], [tensor([0, 1])])
    else:
        segments = torch.where(left[0], 0, -1)
        segments[:2, :3] = 1
        targets = Targets.from_segments([segments], [tensor([0, 1])])
    logits = torch.randn(1, 2, 2, 6, generator=torch.Generator().manual_seed(5))
    logits[..., 4:] = torch.nan
    logits, targets = logits.to(device), targets.to(device)
    *losses, gradient = losses_and_gradient(logits, targets, backend, ignore_void=True)
    clean = losses_and_gradient(logits.nan_to_num(0.0), targets, backend, ignore_void=True)
    assert all(torch.equal(a, b) for a, b in zip((*losses, gradient), clean, strict=True))
    assert (gradient[..., 5:] == 0).all() and (gradient[..., :3] != 0).all()


@in_triton
def test_nan_logits_that_count_are_not_hidden(backend: str) -> None:
    logits, targets = random_inputs((3, 4, 5, 10), backend)
    logits[0, 1, 1, 2] = torch.nan
    focal, dice = mask_loss(logits, targets, backend=backend)
    for loss in (focal, dice):
        assert loss[0, 1].isnan() and loss.isnan().sum() == 1


@in_triton
def test_rows_that_are_not_valid_next_to_others_of_their_tile(backend: str) -> None:
    logits, targets = random_inputs((3, 4, 5, 10), backend)
    valid = tensor([[False, True], [True, True]], device=logits.device)
    logits[0, 0] = torch.inf
    logits[1, 1] = torch.nan  # padding
    focal, dice, gradient = losses_and_gradient(logits, targets, backend, valid=valid)
    for row in ((0, 0), (1, 1)):
        assert focal[row] == dice[row] == 0 and (gradient[row] == 0).all()
    logits = torch.where(logits.isfinite(), logits, 0)
    assert_as_in_float64(logits, targets, backend, valid=valid)
    for row in ((0, 1), (1, 0)):
        assert focal[row] > 0 and dice[row] > 0 and (gradient[row] != 0).all()


@in_triton
def test_any_byte_but_zero_is_inside_a_mask(backend: str) -> None:
    logits, targets = random_inputs((3, 4, 5, 10), backend, masks=True)
    bytes_of = 0xFE * targets.pixels.byte()
    others = Targets(targets.labels, targets.num_targets, masks=bytes_of.view(torch.bool))
    found = [losses_and_gradient(logits, t, backend, ignore_void=True) for t in (others, targets)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@in_triton
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_bits(backend: str, layout: str) -> None:
    logits, targets = random_inputs((3, 4, 5, 10), backend)
    view = LAYOUTS[layout](logits)
    got = losses_and_gradient(view, targets, backend)
    expected = losses_and_gradient(view.contiguous(), targets, backend)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@each_backend("mask_loss")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=short)
def test_the_backward_pass_is_the_weighted_sum_of_the_slopes(
    backend: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(6)
    grads = torch.randn(2, 3, 2, generator=generator).to(device_of(backend))
    slopes = torch.randn(2, 3, 2, 35, 30, generator=generator).to(device_of(backend))
    backward = torch.ops.maskformer_fast.mask_loss_backward
    got = backward(*grads, slopes, dtype, backend)
    expected = backward(*grads, slopes.double(), torch.float64, "reference")
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, **TOLERANCE[dtype])
    torch.library.opcheck(backward.default, (*grads, slopes, dtype, backend))
