"""torch.compile of the criterion and of the model: one graph without a break, the results and
gradients of eager execution, and few graphs whatever sizes come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from op_cases import random_targets
from small_models import MODELS, small_batch, small_config, without_drop_path
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

from maskformer_fast import MaskFormer, MaskFormerCriterion, PerPixelBaseline, Targets

CLASSES, QUERIES, CHANNELS = 5, 8, 16
GRAPHS = 2  # one for the first sizes, one for all others
SIZES = [  # images, targets of each, mask grid, targets' size
    (2, [4, 2], (12, 10), (24, 20)),
    (3, [1, 0, 2], (9, 11), (36, 44)),
    (4, [5, 5, 2, 3], (16, 7), (64, 28)),
    (2, [0, 6], (10, 10), (31, 33)),
    (5, [3, 1, 1, 0, 2], (8, 13), (40, 40)),
]
each_model = pytest.mark.parametrize(
    "changes", [without_drop_path(changes) for changes in MODELS.values()], ids=MODELS
)


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(module: nn.Module, backend: str = "aot_eager") -> tuple[Any, Any]:
    """The module as whole graphs, and the counter of these."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(module, fullgraph=True, backend=counter), counter


def predictions(images: int, grid: tuple[int, int]) -> list[Tensor]:
    """Leaves that require gradients: class logits, mask queries, pixel features, of 2 layers."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, images, QUERIES, CLASSES + 1), (2, images, QUERIES, CHANNELS)]
    shapes += [(images, CHANNELS, *grid)]
    return [torch.randn(s, generator=generator).requires_grad_() for s in shapes]


def assert_same_loss(criterion: Any, other: Any, inputs: list[Tensor], targets: Targets) -> None:
    (total, losses), (expected, expected_losses) = (c(*inputs, targets) for c in (criterion, other))
    assert_close(total, expected)
    assert_close(losses, expected_losses)
    assert_close(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs))


@pytest.mark.parametrize("masks", [False, True], ids=["segments", "masks"])
def test_criterion_at_many_sizes(masks: bool) -> None:
    criterion = MaskFormerCriterion(CLASSES, ignore_void=masks)
    graph, counter = compiled(criterion)
    for images, counts, grid, size in SIZES:
        targets = random_targets(counts, size, num_classes=CLASSES, masks=masks)
        assert_same_loss(graph, criterion, predictions(images, grid), targets)
    assert counter.frame_count <= GRAPHS


def test_criterion_without_targets() -> None:
    criterion = MaskFormerCriterion(CLASSES)
    targets = random_targets([0, 0], (24, 20), num_classes=CLASSES, masks=False)
    assert_same_loss(compiled(criterion)[0], criterion, predictions(2, (12, 10)), targets)


def test_criterion_by_inductor() -> None:
    criterion = MaskFormerCriterion(CLASSES)
    targets = random_targets([4, 2], (24, 20), num_classes=CLASSES, masks=False)
    graph, counter = compiled(criterion, "inductor")
    assert_same_loss(graph, criterion, predictions(2, (12, 10)), targets)
    assert counter.frame_count == 1


@each_model
def test_model_in_training(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = MaskFormer(small_config(**changes)).train()
    graph, counter = compiled(model)
    for counts in ([2, 1], [4, 3], [0, 2], [5, 0]):
        batch = small_batch(counts)
        found = []
        for run in (model, graph):
            model.zero_grad()
            output = run(*batch)
            output.loss.backward()
            found.append((output.loss, output.losses, [p.grad for p in model.parameters()]))
        assert_close(*found)
    assert counter.frame_count <= GRAPHS


@each_model
def test_model_in_evaluation(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = MaskFormer(small_config(**changes)).eval()
    graph, counter = compiled(model)
    for with_targets in (False, True):
        batch = small_batch([2, 1]) if with_targets else small_batch([2, 1])[:1]
        found = [run(*batch) for run in (model, graph)]
        for name in ("loss", "class_queries_logits", "masks_queries_logits", "pixel_features"):
            assert_close(*(output.get(name) for output in found))
    assert counter.frame_count == 2


def test_baseline_in_training() -> None:
    model = PerPixelBaseline(small_config()).train()
    graph, _ = compiled(model)
    losses = [run(*small_batch([2, 1])).loss for run in (model, graph)]
    assert_close(*losses)
