"""On a GPU: a whole training step waits for the device nowhere, and as one CUDA graph it trains as
it does operator by operator."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import graphed_step
import pytest
import torch
from small_models import MODELS, small_batch, small_config, without_drop_path
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from maskformer_fast import MaskFormer, Targets, backends

OBSTACLE = backends()["linear_assignment"]["cuda"]  # its reference reads the host
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=f"linear_assignment, cuda: {OBSTACLE}")

MOST = 4
BESIDE_THE_GRAPH = 4  # launches: torch sets seed and offset of the generator before a replay
CLIP = 0.01
BATCHES = [[2, 1], [0, 3], [1, 1], [3, 2], [0, 0], [4, 1], [1, 2]]  # more than the warm-up
# Sums by atomics in torch's own backward passes have no fixed order, and products of bfloat16
# may choose another algorithm while they are captured.
LOSS_TOLERANCE = {None: 1e-4, torch.bfloat16: 2e-2}

each_model = pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
each_precision = pytest.mark.parametrize("precision", LOSS_TOLERANCE, ids=str)
each_form = pytest.mark.parametrize("masks", [False, True], ids=["segments", "masks"])


def prepared(changes: dict[str, Any], precision: torch.dtype | None, dropout: float) -> Any:
    """A model under autocast, its optimiser and the schedule."""
    torch.manual_seed(0)
    model = MaskFormer(small_config(dropout=dropout, **changes)).train().cuda()
    if precision is not None:
        model.forward = torch.autocast("cuda", precision)(model.forward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return model, optimizer, schedule


def batch(counts: list[int], masks: bool) -> tuple[Tensor, Targets]:
    """In page-locked memory, as a DataLoader has it."""
    pixel_values, targets = small_batch(counts, masks=masks)
    return (pixel_values + sum(counts)).pin_memory(), targets.padded(MOST).pin_memory()


@contextlib.contextmanager
def waits() -> Iterator[list[str]]:
    """What torch reports of the host waiting for the device."""
    before, found = torch.cuda.get_sync_debug_mode(), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
        found += [str(w.message) for w in caught if "called a synchronizing" in str(w.message)]


@pytest.mark.parametrize(
    "waiting", [lambda x: x.sum().item(), lambda x: torch.tensor([1.0], device="cuda")]
)
def test_a_wait_is_counted(waiting: Callable[[Tensor], Any]) -> None:
    x = torch.ones(3, device="cuda")
    with waits() as none:
        x.add_(1)
    with waits() as found:
        waiting(x)
    assert none == [] and found != []


@each_form
@each_precision
@each_model
def test_a_cuda_training_step_does_not_wait(
    changes: dict[str, Any], precision: torch.dtype | None, masks: bool
) -> None:
    model, optimizer, schedule = prepared(changes, precision, dropout=0.1)
    graphed_step.rates_on_device(optimizer, torch.device("cuda"))
    first, second = batch([2, 1], masks), batch([0, 3], masks)
    for pixel_values, targets in (first, first):  # what only first steps do
        graphed_step.train_step(model, optimizer, CLIP, pixel_values.cuda(), targets.to("cuda"))
        schedule.step()
    with waits() as found:
        pixel_values = second[0].to("cuda", non_blocking=True)
        targets = second[1].to("cuda", non_blocking=True)
        graphed_step.train_step(model, optimizer, CLIP, pixel_values, targets)
        schedule.step()
    assert found == []


def losses_of(step: Any, schedule: Any, masks: bool) -> list[float]:
    losses = []
    for counts in BATCHES:
        pixel_values, targets = batch(counts, masks)
        losses.append(step(pixel_values.cuda(), targets.to("cuda")).item())
        schedule.step()
    return losses


@each_form
@each_precision
@each_model
def test_a_cuda_graph_of_the_step_trains_as_eager_steps_do(
    changes: dict[str, Any], precision: torch.dtype | None, masks: bool
) -> None:
    changes = without_drop_path(changes)  # a replay's random numbers need not be a call's
    expected_model, optimizer, schedule = prepared(changes, precision, dropout=0.0)
    graphed_step.rates_on_device(optimizer, torch.device("cuda"))

    def eager(*inputs: Any) -> Tensor:
        return graphed_step.train_step(expected_model, optimizer, CLIP, *inputs)

    expected = losses_of(eager, schedule, masks)
    model, optimizer, schedule = prepared(changes, precision, dropout=0.0)
    step = graphed_step.GraphedStep(model, optimizer, CLIP)
    losses = losses_of(step, schedule, masks)
    assert step.graph is not None and len(BATCHES) > graphed_step.WARM_UP + 1
    print(f"eager {expected}\ngraph {losses}")
    assert losses == pytest.approx(expected, rel=LOSS_TOLERANCE[precision])
    assert len(set(losses)) == len(losses)


def test_a_cuda_graph_draws_other_random_numbers_in_every_replay() -> None:
    model, optimizer, _ = prepared({}, None, dropout=0.5)
    for group in optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0  # the same weights and inputs all the time
    step = graphed_step.GraphedStep(model, optimizer, CLIP)
    pixel_values, targets = batch([2, 1], masks=False)
    losses = [step(pixel_values, targets).item() for _ in range(graphed_step.WARM_UP + 5)]
    assert step.graph is not None and len(set(losses)) == len(losses)


def test_a_replayed_cuda_step_is_one_graph_and_does_not_wait() -> None:
    model, optimizer, schedule = prepared({}, torch.bfloat16, dropout=0.1)
    step = graphed_step.GraphedStep(model, optimizer, CLIP)
    inputs = [batch(counts, masks=False) for counts in BATCHES]
    for pixel_values, targets in inputs[: graphed_step.WARM_UP + 1]:
        step(pixel_values, targets)
        schedule.step()
    with waits() as found:
        for pixel_values, targets in inputs:
            step(pixel_values, targets)
            schedule.step()
    assert found == []
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step(*inputs[0])
        torch.cuda.synchronize()
    calls = {event.key: event.count for event in profiler.key_averages()}
    print({name: count for name, count in calls.items() if name.startswith("cuda")})
    assert calls["cudaGraphLaunch"] == 1
    kernels = sum(count for name, count in calls.items() if name.startswith("cudaLaunchKernel"))
    assert kernels <= BESIDE_THE_GRAPH
