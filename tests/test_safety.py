"""What holds for every op: where its inputs lie in memory, how many threads it has and who calls it
at the same time do not change its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from backends import device_of, implemented, interpreted, skip_if_refused
from map_cases import random_predictions
from op_cases import LAYOUTS, TOLERANCE, random_targets, short
from torch import Tensor, tensor

from maskformer_fast import Targets, backends, ops
from maskformer_fast.ops.panoptic_map import DIALECTS
from maskformer_fast.ops.semantic_map import ORDERS

GRID = (19, 23)
SIZE = (83, 99)  # of targets and maps
SMALL_GRID, SMALL_SIZE = (4, 5), (7, 9)  # where Triton's interpreter visits every pixel
CLASSES = 5
REPEATS = 3
CACHE_LINE = 64  # bytes
THREADS = (1, 2, 5)
CALLERS = 4  # Python threads at once
ROUNDING = {**TOLERANCE, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}  # other dtypes: equal
Results = tuple[Tensor, ...]


class Case(NamedTuple):
    """One way to call an op: `inputs(seed)`, and `run(backend, *inputs)` for all of its results."""

    op: str
    inputs: Callable[[int], list[Tensor]]
    run: Callable[..., Results]
    products: bool = False  # torch's matrix products are part of it: they may round by the threads
    large: bool = False  # too much for Triton's interpreter


# --- inputs -----------------------------------------------------------------------------------


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def targets(seed: int, masks: bool, size: tuple[int, int] = SIZE) -> list[Tensor]:
    found = random_targets([3, 2], size, num_classes=CLASSES, masks=masks, seed=seed)
    return [found.labels, found.num_targets, found.pixels]


def as_targets(labels: Tensor, num_targets: Tensor, pixels: Tensor) -> Targets:
    kind = "masks" if pixels.dtype == torch.bool else "segments"
    return Targets(labels, num_targets, **{kind: pixels})


def embeddings(seed: int) -> list[Tensor]:
    """mask_queries [2, 7, 8] and pixel_features [2, 8, h, w]."""
    return [random(seed, 2, 7, 8), random(seed + 1, 2, 8, *GRID)]


def predictions(seed: int) -> list[Tensor]:
    region = tensor([[19.0, 17.3], [12.5, 23.0]], dtype=torch.float64)
    return [*random_predictions(2, 9, CLASSES, *GRID, seed=seed), region]


# --- calls ------------------------------------------------------------------------------------


def mask_logits(op: Callable[..., Tensor]) -> Case:
    def inputs(seed: int) -> list[Tensor]:
        return [*embeddings(seed), random(seed + 2, 2, 7, *GRID)]

    def run(backend: str, queries: Tensor, features: Tensor, grad: Tensor) -> Results:
        leaves = [t.detach().requires_grad_() for t in (queries, features)]
        result = op(*leaves, backend=backend)
        return result, *torch.autograd.grad(result, leaves, grad)

    return Case("mask_logits", inputs, run, products=True)


def matching_cost(masks: bool) -> Case:
    def inputs(seed: int) -> list[Tensor]:
        queries, features = embeddings(seed)
        layers = torch.stack([queries, queries.flip(1)])
        return [random(seed, 2, 2, 7, CLASSES + 1), layers, features, *targets(seed, masks)]

    def run(backend: str, *inputs: Tensor) -> Results:
        return (ops.matching_cost(*inputs[:3], as_targets(*inputs[3:]), backend=backend),)

    return Case("matching_cost", inputs, run, products=True)


def matching_cost_from_logits(masks: bool) -> Case:
    def inputs(seed: int) -> list[Tensor]:
        return [*random_predictions(2, 9, CLASSES, *GRID, seed=seed), *targets(seed, masks)]

    def run(backend: str, *inputs: Tensor) -> Results:
        found = as_targets(*inputs[2:])
        return (ops.matching_cost_from_logits(*inputs[:2], found, backend=backend),)

    return Case("matching_cost_from_logits", inputs, run)


def linear_assignment() -> Case:
    def inputs(seed: int) -> list[Tensor]:
        return [random(seed, 12, 20, 30).mul(3).round(), tensor([20, 7, 0, 1] * 3)]

    def run(backend: str, cost: Tensor, num_targets: Tensor) -> Results:
        return ops.linear_assignment(cost, num_targets, backend=backend)

    return Case("linear_assignment", inputs, run)


def mask_loss(masks: bool, small: bool) -> Case:
    grid, size = (SMALL_GRID, SMALL_SIZE) if small else (GRID, SIZE)

    def inputs(seed: int) -> list[Tensor]:
        valid = random(seed, 4, 3) > -1
        return [2 * random(seed, 4, 3, *grid), *targets(seed, masks, size), valid]

    def run(backend: str, logits: Tensor, *rest: Tensor) -> Results:
        *fields, valid = rest
        logits = logits.detach().requires_grad_()
        options = {"valid": valid, "ignore_void": True, "backend": backend}
        losses = ops.mask_loss(logits, as_targets(*fields), **options)
        return *losses, *torch.autograd.grad(losses, logits, [loss.detach() for loss in losses])

    return Case("mask_loss", inputs, run, large=not small)


def semantic_map(order: str) -> Case:
    def run(backend: str, classes: Tensor, masks: Tensor, region: Tensor) -> Results:
        options = {"order": order, "region": region, "return_scores": True, "backend": backend}
        return ops.semantic_map(classes, masks, SIZE, **options)

    return Case("semantic_map", predictions, run)


def semantic_map_from_features(order: str) -> Case:
    def inputs(seed: int) -> list[Tensor]:
        classes, _, region = predictions(seed)
        return [classes[:, :7], *embeddings(seed), region]

    def run(backend: str, *inputs: Tensor) -> Results:
        *tensors, region = inputs
        options = {"order": order, "region": region, "return_scores": True, "backend": backend}
        return ops.semantic_map_from_features(*tensors, SIZE, **options)

    return Case("semantic_map_from_features", inputs, run, products=True)


def panoptic_map(dialect: str) -> Case:
    rules = {"thing_classes": [0, 2], "score_threshold": 0.1, "overlap_threshold": 0.1}

    def run(backend: str, classes: Tensor, masks: Tensor, region: Tensor) -> Results:
        options = {**rules, "dialect": dialect, "region": region, "backend": backend}
        return ops.panoptic_map(classes, masks, SIZE, **options)

    return Case("panoptic_map", predictions, run)


def instance_masks() -> Case:
    def run(backend: str, classes: Tensor, masks: Tensor, region: Tensor) -> Results:
        options = {"top_k": 12, "region": region, "backend": backend}
        return ops.instance_masks(classes, masks, SIZE, **options)

    return Case("instance_masks", predictions, run)


CASES = {
    "mask_logits": mask_logits(ops.mask_logits),
    "mask_probs": mask_logits(ops.mask_probs),
    "matching_cost-segments": matching_cost(masks=False),
    "matching_cost-masks": matching_cost(masks=True),
    "matching_cost_from_logits-segments": matching_cost_from_logits(masks=False),
    "matching_cost_from_logits-masks": matching_cost_from_logits(masks=True),
    "linear_assignment": linear_assignment(),
    "mask_loss-segments": mask_loss(masks=False, small=False),
    "mask_loss-masks": mask_loss(masks=True, small=False),
    "mask_loss-small-segments": mask_loss(masks=False, small=True),
    "mask_loss-small-masks": mask_loss(masks=True, small=True),
    **{f"semantic_map-{order}": semantic_map(order) for order in ORDERS},
    **{f"semantic_map_from_features-{o}": semantic_map_from_features(o) for o in ORDERS},
    **{f"panoptic_map-{dialect}": panoptic_map(dialect) for dialect in DIALECTS},
    "instance_masks": instance_masks(),
}
each_case = pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(case, backend, marks=marks, id=f"{name}-{backend}")
        for name, case in CASES.items()
        for backend, marks in implemented(case.op).items()
        if not (case.large and backend == "triton" and interpreted())
    ],
)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)


def inputs_of(case: Case, backend: str, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """The case's inputs, those that are float32 in `dtype`."""
    skip_if_refused(backend, dtype)
    tensors = [t.to(device_of(backend)) for t in case.inputs(seed)]
    return [t.to(dtype) if t.dtype == torch.float32 else t for t in tensors]


def identical(one: Results, other: Results) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads an op may use; as before after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_every_op_is_here() -> None:
    assert {case.op for case in CASES.values()} == set(backends())


@each_case
@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_alignment_gives_the_same(
    case: Case, backend: str, dtype: torch.dtype, layout: str
) -> None:
    skip_if_refused(backend, dtype)
    views = [LAYOUTS[layout](t) for t in inputs_of(case, backend, dtype)]
    assert all(not t.is_contiguous() or t.data_ptr() % CACHE_LINE for t in views)
    dense = [t.clone(memory_format=torch.contiguous_format) for t in views]
    before = [t.clone() for t in views]
    got, expected = case.run(backend, *views), case.run(backend, *dense)
    for a, b in zip(got, expected, strict=True):  # a product may round by the layout
        torch.testing.assert_close(a, b, **ROUNDING.get(a.dtype, {"rtol": 0, "atol": 0}))
    assert identical(views, before)


@each_case
@each_dtype
def test_the_same_bits_every_time_and_from_kernels_whatever_the_threads(
    case: Case, backend: str, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    skip_if_refused(backend, dtype)
    inputs = inputs_of(case, backend, dtype)
    found = []
    for count in THREADS:
        threads(count)
        found.append(case.run(backend, *inputs))
        assert all(identical(case.run(backend, *inputs), found[-1]) for _ in range(REPEATS))
    if backend != "reference" and not case.products:
        assert all(identical(one, found[0]) for one in found)


@each_case
@pytest.mark.parametrize("count", [1, 2])
def test_python_threads_at_once_get_the_bits_of_one(
    case: Case, backend: str, count: int, threads: Callable[[int], None]
) -> None:
    if backend == "triton" and interpreted():
        pytest.skip("Triton's interpreter serves one call at a time")
    threads(count)
    calls = [inputs_of(case, backend, torch.float32, seed) for seed in range(2 * CALLERS)]
    expected = [case.run(backend, *inputs) for inputs in calls]
    with ThreadPoolExecutor(CALLERS) as pool:
        found = list(pool.map(lambda inputs: case.run(backend, *inputs), calls * REPEATS))
    assert all(map(identical, found, expected * REPEATS))
