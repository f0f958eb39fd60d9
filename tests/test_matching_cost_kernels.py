"""matching_cost in Triton: tiles that do not fit, many targets, layouts, and the matching that half
inputs give. What other backends do is tested in test_matching_cost.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from backends import device_of, each_backend
from op_cases import LAYOUTS, LOSS_TOLERANCE, TOLERANCE, random_targets, short
from torch import Tensor

from maskformer_fast import Targets
from maskformer_fast.ops import linear_assignment, matching_cost, matching_cost_from_logits

pytest.importorskip("triton")

from maskformer_fast.kernels import matching_cost as kernels
from maskformer_fast.kernels.launch import Config, configuration, using

CLASSES = 5
each = each_backend("matching_cost", of=["triton"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=short)


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    layers, b, q, c, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    class_logits = 2 * torch.randn(layers, b, q, CLASSES + 1, generator=generator)
    queries = torch.randn(layers, b, q, c, generator=generator)
    features = torch.randn(b, c, h, w, generator=generator)
    return [t.to(dtype) for t in (class_logits, queries, features)]


def run(backend: str, tensors: list[Tensor], targets: Targets, **options: float) -> Tensor:
    device = device_of(backend)
    moved = [t.to(device) for t in tensors]
    return matching_cost(*moved, targets.to(device), backend=backend, **options).cpu()


def exact(tensors: list[Tensor], targets: Targets, **options: float) -> Tensor:
    doubles = [t.double() for t in tensors]
    return matching_cost(*doubles, targets, backend="reference", **options)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return LOSS_TOLERANCE if dtype == torch.float32 else TOLERANCE[dtype]


@contextmanager
def tiles(backend: str, **sizes: int) -> Iterator[None]:
    """Every kernel with these block sizes, where it has such a block."""
    device = torch.device(device_of(backend))
    names = {
        "matching_cost.sums": [
            f"{source}_{dtype}_{number}"
            for source in ("features", "logits")
            for dtype in ("float32", "half")
            for number in ("few", "many", "wide")
            if number != "wide" or (source, dtype) == ("features", "half")
        ],
        "matching_cost.sample": ["segments", "masks"],
        "matching_cost.finish": ["any"],
    }
    with ExitStack() as stack:
        for name, classes in names.items():
            for size_class in classes:
                entry = configuration(name, size_class, device).entry()
                entry.update({key: n for key, n in sizes.items() if key in entry})
                stack.enter_context(using(Config.from_entry(name, size_class, entry)))
        yield


SMALL = {"BLOCK_M": 16, "BLOCK_P": 16, "BLOCK_T": 32, "BLOCK_C": 16, "BLOCK_Q": 8, "BLOCK_K": 4}


@each
@each_dtype
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("ignore_void", [False, True])
@pytest.mark.parametrize("channels", [16, 37])
def test_many_row_blocks_parts_and_channel_blocks(backend, dtype, masks, ignore_void, channels):
    tensors = inputs((2, 2, 21, channels, 7, 11), dtype)
    targets = random_targets([4, 2], (13, 17), num_classes=CLASSES, masks=masks)
    with tiles(backend, **SMALL):
        got = run(backend, tensors, targets, ignore_void=ignore_void)
    expected = exact(tensors, targets, ignore_void=ignore_void)
    torch.testing.assert_close(got.double(), expected, **tolerance(dtype))


@each
@each_dtype
@pytest.mark.parametrize("count", [5, 40])
@pytest.mark.parametrize("ignore_void", [False, True])
@pytest.mark.parametrize("grid", [(8, 8), (8, 10)], ids=str)
def test_inputs_that_are_aligned(backend, dtype, count, ignore_void, grid):
    """In half precision the tiles whose queries stay in shared memory, full and not."""
    tensors = inputs((2, 2, 21, 16, *grid), dtype)
    targets = random_targets([count, 2], (13, 17), num_classes=CLASSES, masks=False)
    got = run(backend, tensors, targets, ignore_void=ignore_void)
    expected = exact(tensors, targets, ignore_void=ignore_void)
    torch.testing.assert_close(got.double(), expected, **tolerance(dtype))


@each
def test_more_channels_than_shared_memory_holds(backend):
    tensors = inputs((1, 1, 3, kernels.RESIDENT_CHANNELS + 1, 4, 5), torch.float16)
    tensors[1] /= 16
    targets = random_targets([2], (4, 5), num_classes=CLASSES, masks=False)
    got = run(backend, tensors, targets)
    torch.testing.assert_close(got.double(), exact(tensors, targets), **TOLERANCE[torch.float16])


@each
@each_dtype
@pytest.mark.parametrize("count", [31, 32, 64, 70])
@pytest.mark.parametrize("masks", [False, True])
def test_more_targets_than_a_word_or_a_block(backend, dtype, count, masks):
    tensors = inputs((1, 2, 5, 8, 9, 10), dtype)
    targets = random_targets([count, 40], (19, 21), num_classes=CLASSES, masks=masks)
    got = run(backend, tensors, targets, ignore_void=True)
    torch.testing.assert_close(
        got.double(), exact(tensors, targets, ignore_void=True), **tolerance(dtype)
    )


@each
@each_dtype
@pytest.mark.parametrize(("alpha", "gamma"), [(0, 0), (0.25, 0.5), (1, 2), (1.5, 2), (0.6, 3)])
def test_focal_options(backend, dtype, alpha, gamma):
    tensors = inputs((1, 2, 5, 8, 5, 6), dtype)
    tensors[1] *= 4  # logits of up to about 40
    targets = random_targets([3, 2], (7, 9), num_classes=CLASSES, masks=True)
    options = {"alpha": alpha, "gamma": gamma, "ignore_void": True}
    got = run(backend, tensors, targets, **options)
    torch.testing.assert_close(got.double(), exact(tensors, targets, **options), **tolerance(dtype))


@each
@pytest.mark.parametrize("x", [-1000.0, -100.0, -88.0, -20.0, 0.0, 20.0, 88.0, 100.0, 1000.0])
def test_any_finite_logit(backend, x):
    device = device_of(backend)
    targets = Targets.from_masks([torch.tensor([[[True, False]]])], [torch.tensor([1])])
    class_logits = torch.zeros(1, 1, CLASSES + 1)
    mask = torch.full((1, 1, 1, 2), x)
    got = matching_cost_from_logits(
        class_logits.to(device), mask.to(device), targets.to(device), backend=backend
    )
    expected = matching_cost_from_logits(
        class_logits.double(), mask.double(), targets, backend="reference"
    )
    torch.testing.assert_close(got.cpu().double(), expected, **LOSS_TOLERANCE)


@each
@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same(backend, dtype, layout):
    """To the bit in the interpreter; for a GPU every layout is compiled, and may round, anew."""
    device = device_of(backend)
    tensors = inputs((2, 2, 7, 8, 9, 6), dtype)
    for masks in (False, True):
        targets = random_targets([3, 2], (13, 11), num_classes=CLASSES, masks=masks)
        fields = [targets.labels, targets.num_targets, targets.pixels]
        views = [LAYOUTS[layout](t.to(device)) for t in (*tensors, *fields)]
        dense = [t.contiguous() for t in views]
        results = []
        for *inputs_, labels, counts, pixels in (views, dense):
            kind = {"masks" if masks else "segments": pixels}
            found = matching_cost(*inputs_, Targets(labels, counts, **kind), backend=backend)
            results.append(found)
        tolerances = tolerance(dtype) if device == "cuda" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(*results, **tolerances)


@each
@each_dtype
def test_the_same_bits_every_time_and_few_parts_of_the_pixels(backend, dtype, monkeypatch):
    tensors = inputs((2, 1, 20, 8, 16, 20), dtype)
    targets = random_targets([3], (16, 20), num_classes=CLASSES, masks=False)
    found = []
    for programs in (1, 6, 1000):
        monkeypatch.setattr(kernels, "PROGRAMS", programs)
        with tiles(backend, BLOCK_P=16):
            costs = [run(backend, tensors, targets) for _ in range(2)]
        assert torch.equal(*costs)
        found.append(costs[0])
    for cost in found:
        torch.testing.assert_close(cost.double(), exact(tensors, targets), **tolerance(dtype))


@pytest.mark.parametrize("tiles_", [1, 7, 400])
@pytest.mark.parametrize("programs", [1, 80, 5000])
@pytest.mark.parametrize("size", [1, 1 << 22, 1 << 40])
def test_parts_cover_every_tile_once_and_fit_their_memory(tiles_, programs, size):
    splits, each_has = kernels._splits(tiles_, programs, size)
    assert (splits - 1) * each_has < tiles_ <= splits * each_has
    assert splits == 1 or splits * size <= kernels.WORKSPACE


@each
def test_any_byte_but_zero_is_inside_a_mask(backend):
    tensors = inputs((1, 2, 5, 8, 6, 7))
    targets = random_targets([3, 2], (6, 7), num_classes=CLASSES, masks=True)
    bytes_of = 0xFE * targets.masks.byte()
    others = Targets(targets.labels, targets.num_targets, masks=bytes_of.view(torch.bool))
    got, expected = (run(backend, tensors, t, ignore_void=True) for t in (others, targets))
    assert torch.equal(got, expected)


@each
@each_dtype
@pytest.mark.parametrize("masks", [False, True])
def test_void_pixels_hold_anything(backend, dtype, masks):
    tensors = inputs((1, 2, 5, 8, 6, 7), dtype)
    targets = random_targets([3, 2], (6, 7), num_classes=CLASSES, masks=masks)
    void = ~targets.masks.any(1) if masks else targets.segments < 0
    assert void.any() and not void.all()
    clean = run(backend, tensors, targets, ignore_void=True)
    for bad in (torch.nan, torch.inf, -torch.inf):
        features = torch.where(void[:, None], torch.tensor(bad, dtype=dtype), tensors[2])
        got = run(backend, [*tensors[:2], features], targets, ignore_void=True)
        assert torch.equal(got, clean)


@each
@each_dtype
def test_one_query_s_nan_stays_its_own(backend, dtype):
    tensors = inputs((2, 1, 20, 8, 6, 7), dtype)
    targets = random_targets([3], (6, 7), num_classes=CLASSES, masks=False)
    clean = run(backend, tensors, targets)
    tensors[1][1, 0, 4] = torch.nan
    got = run(backend, tensors, targets)
    assert got[1, 0, :, 4].isnan().all()
    others = torch.arange(20) != 4
    assert torch.equal(got[0], clean[0]) and torch.equal(got[1, ..., others], clean[1, ..., others])


# --- the matching that half inputs give ---------------------------------------------------------

LAYERS, IMAGES, T, Q = 16, 16, 8, 20
PROBLEMS = LAYERS * IMAGES


def problems(family: str, dtype: torch.dtype) -> tuple[list[Tensor], Targets]:
    """PROBLEMS problems of T targets and Q queries, whose embeddings are numbers of `dtype`."""
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(LAYERS, IMAGES, Q, CLASSES + 1, generator=generator)
    queries = torch.randn(LAYERS, IMAGES, Q, 16, generator=generator)
    if family == "early training":  # all queries alike
        class_logits, queries = 0.02 * class_logits, queries[:, :, :1] + 0.02 * queries
    features = torch.randn(IMAGES, 16, 12, 12, generator=generator)
    tensors = [t.to(dtype) for t in (class_logits, queries, features)]
    targets = random_targets([T] * IMAGES, (24, 24), num_classes=CLASSES, masks=False)
    return tensors, targets


def total(cost: Tensor, query_of_target: Tensor) -> Tensor:
    """[N, T, Q], [N, T] -> [N] float64."""
    return cost.double().gather(2, query_of_target[..., None]).sum((1, 2))


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=short)
@pytest.mark.parametrize("family", ["random", "early training"])
def test_half_embeddings_give_the_matching_of_float32(backend, family, dtype, monkeypatch):
    """Equal, except where the two best totals lie within the rounding of the costs: counted.

    In the interpreter bfloat16 embeddings come as float32 of the same values, with the sums of half
    inputs: nothing else in the kernel depends on the type of its inputs.
    """
    tensors, targets = problems(family, dtype)
    singles = [t.float() for t in tensors]
    if dtype == torch.bfloat16 and device_of(backend) == "cpu":
        tensors = singles
        monkeypatch.setattr(kernels, "SPLIT", (torch.float32,))
    got = run(backend, tensors, targets).flatten(0, 1)
    expected = matching_cost(*singles, targets, backend="reference").flatten(0, 1)
    rounding = 2.0**-16 * expected.abs().amax()  # of split terms; no cost is off by more
    assert 0 < (got - expected).abs().amax() <= rounding
    ours, theirs = (linear_assignment(cost).query_of_target for cost in (got, expected))
    differs = (ours != theirs).any(1)
    behind = total(expected, ours) - total(expected, theirs)
    assert (behind[differs] <= 2 * T * rounding).all()
    print(f"{family}, {short(dtype)}: {int(differs.sum())} of {PROBLEMS} matchings differ")
    assert differs.sum() <= PROBLEMS // 100
