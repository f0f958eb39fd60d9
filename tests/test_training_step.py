"""The training step: no host read anywhere in it, and examples/graphed_step.py trains as a plain
loop does. Without a GPU nothing is captured; tests/test_training_step_cuda.py does that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import graphed_step
import pytest
import torch
from host_reads import DEVICE, WouldWait, device_like_cuda, no_waiting, on_device
from small_models import SMALL_SWIN, small_batch, small_config
from torch import Tensor, nn

from maskformer_fast import MaskFormer, MaskFormerCriterion, PerPixelBaseline, Targets

BATCHES = [[2, 1], [0, 3], [1, 1], [3, 2], [0, 0]]  # numbers of targets
MOST = 3
CLIP = 0.01
RATE = 1e-3
BATCH_NORM = {"norm": "batch", **small_config().backbone_config}
BACKBONES = {
    "resnet": {},
    "resnet_batch_norm": {"backbone_config": BATCH_NORM},
    "swin": SMALL_SWIN,
}


def batch(counts: list[int], masks: bool = False) -> tuple[Tensor, Targets]:
    """As examples/train.py makes them with --max-targets."""
    pixel_values, targets = small_batch(counts, masks=masks)
    return pixel_values + sum(counts), targets.padded(MOST)


def optimizer_of(model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW with two learning rates, and a schedule that changes them."""
    decoder = list(model.pixel_level.decoder.parameters())
    rest = [p for p in model.parameters() if all(p is not q for q in decoder)]
    optimizer = torch.optim.AdamW([{"params": decoder, "lr": RATE / 2}, {"params": rest}], lr=RATE)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


# --- no host read -----------------------------------------------------------------------------


def run_step_on_device(model: nn.Module, masks: bool = False) -> int:
    """Two whole steps where reading a value is an error: how many operators they called."""
    model = on_device(model.train())
    optimizer, schedule = optimizer_of(model)
    pixel_values, targets = (on_device(part) for part in batch([2, 1], masks))
    with device_like_cuda():
        step = graphed_step.GraphedStep(model, optimizer, CLIP)
        with no_waiting() as operators:
            for _ in range(2):
                loss = step(pixel_values, targets)
                schedule.step()
    states = optimizer.state.values()
    assert {x.device.type for state in states for x in state.values()} == {DEVICE}
    assert loss.device.type == DEVICE and len(optimizer.state) == len(list(model.parameters()))
    return operators.calls


@pytest.mark.parametrize("masks", [False, True], ids=["segments", "masks"])
@pytest.mark.parametrize("decoder", ["fpn", "transformer_fpn"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_training_step_reads_nothing_back(backbone: str, decoder: str, masks: bool) -> None:
    options = {"dropout": 0.1, "pixel_decoder": decoder, "ignore_void": masks}
    model = MaskFormer(small_config(**options, **BACKBONES[backbone]))
    assert run_step_on_device(model, masks) > 1000


def test_a_training_step_of_the_baseline_reads_nothing_back() -> None:
    assert run_step_on_device(PerPixelBaseline(small_config())) > 500


def read_in_criterion(cost: Tensor) -> None:
    cost.max().item()


def made_in_criterion(cost: Tensor) -> None:
    torch.tensor([1.0, 2.0], device=cost.device)


@pytest.mark.parametrize("planted", [read_in_criterion, made_in_criterion])
def test_what_reads_inside_the_criterion_is_found(
    planted: Callable[[Tensor], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    match = MaskFormerCriterion.match

    def reading(self: MaskFormerCriterion, *inputs: Any) -> Tensor:
        planted(inputs[0])
        return match(self, *inputs)

    monkeypatch.setattr(MaskFormerCriterion, "match", reading)
    with pytest.raises(WouldWait):
        run_step_on_device(MaskFormer(small_config()))


def test_what_reads_in_the_backward_pass_is_found() -> None:
    x = torch.ones(3, device=DEVICE, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: grad * grad.sum().item())
    with pytest.raises(WouldWait, match="_local_scalar_dense"), no_waiting():
        y.sum().backward()


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.__setitem__(x > 0, 1),
        lambda x: x.nonzero(),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0], device=DEVICE),
        lambda x: torch.as_tensor([1.0], device=DEVICE),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.ones(3).to(DEVICE),
        lambda x: x.copy_(torch.ones(3)),
    ],
)
def test_what_waits_for_a_gpu_is_found(waits: Callable[[Tensor], Any]) -> None:
    x = torch.ones(3, device=DEVICE)
    with pytest.raises(WouldWait), no_waiting():
        waits(x)


@pytest.mark.parametrize("waits", [Tensor.tolist, Tensor.cpu, Tensor.numpy])
def test_what_copies_to_the_host_is_an_error(waits: Callable[[Tensor], Any]) -> None:
    with pytest.raises((NotImplementedError, TypeError)), no_waiting():
        waits(torch.ones(3, device=DEVICE))


@pytest.mark.parametrize(
    "runs_on",
    [
        lambda x: torch.full((3,), 2.0, device=DEVICE).mul_(x),
        lambda x: torch.where(x > 0, x, 0).clamp(min=1),
        lambda x: x[torch.arange(2, device=DEVICE)],
        lambda x: x * torch.tensor(2.0),  # a number of the host, passed to the kernel
        lambda x: x.fill_(3.0),
    ],
)
def test_what_does_not_wait_passes(runs_on: Callable[[Tensor], Tensor]) -> None:
    with no_waiting():
        assert runs_on(torch.ones(3, device=DEVICE)).device.type == DEVICE


# --- the graphed step trains as a plain loop ---------------------------------------------------


def plain_losses(model: nn.Module) -> list[float]:
    """A loop as PyTorch's documentation has it."""
    optimizer, schedule = optimizer_of(model)
    losses = []
    for counts in BATCHES:
        loss = model(*batch(counts)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def seeded_model(**changes: Any) -> MaskFormer:
    torch.manual_seed(0)
    return MaskFormer(small_config(dropout=0.1, **changes)).train()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_trains_as_a_plain_loop_does(backbone: str, capturable: bool) -> None:
    expected_model, model = (seeded_model(**BACKBONES[backbone]) for _ in range(2))
    torch.manual_seed(1)  # of dropout
    expected = plain_losses(expected_model)
    optimizer, schedule = optimizer_of(model)
    step = graphed_step.GraphedStep(model, optimizer, CLIP)
    for group in optimizer.param_groups:
        group["capturable"] = capturable  # True on a GPU; on the CPU torch would refuse it
    torch.manual_seed(1)
    losses = []
    with device_like_cuda("cpu") if capturable else contextlib.nullcontext():
        for counts in BATCHES:
            losses.append(step(*batch(counts)).item())
            schedule.step()
    print(
        f"largest difference {max(abs(a - b) for a, b in zip(losses, expected, strict=True)):.1e}"
    )
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len(set(losses)) == len(losses)
    for got, wanted in zip(model.parameters(), expected_model.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_inputs_and_rates_stay_where_a_graph_reads_them() -> None:
    model = seeded_model()
    optimizer, schedule = optimizer_of(model)
    step = graphed_step.GraphedStep(model, optimizer, CLIP)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert [rate.item() for rate in rates] == pytest.approx([RATE / 2, RATE])
    first = batch([2, 1])
    step(*first)
    inputs = graphed_step.parts(*step.inputs)
    addresses = [x.data_ptr() for x in inputs]
    other = batch([1, 3])
    step(*other)
    schedule.step()
    assert [x.data_ptr() for x in graphed_step.parts(*step.inputs)] == addresses
    for kept, given in zip(inputs, graphed_step.parts(*other), strict=True):
        assert kept.equal(given) and kept.data_ptr() != given.data_ptr()
    assert all(
        group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True)
    )
    assert [rate.item() for rate in rates] == pytest.approx([RATE / 4, RATE / 2])


def test_first_steps_train_uncaptured_and_every_later_batch_is_replayed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = seeded_model()
    step = graphed_step.GraphedStep(model, optimizer_of(model)[0], CLIP)
    events: list[Any] = []

    def seen() -> Any:
        return step.inputs[1].num_targets.tolist()

    def run() -> Tensor:
        events.append(("run", seen()))
        return torch.zeros(())

    @contextlib.contextmanager
    def capture(graph: Any, **options: Any) -> Iterator[None]:
        assert options["stream"] is step.stream
        events.append("capture")
        yield
        events.append("captured")

    step.stream, step._run = MagicMock(), run
    graph = SimpleNamespace(replay=lambda: events.append(("replay", seen())))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", MagicMock())
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: None)
    assert len(BATCHES) == graphed_step.WARM_UP + 2
    for counts in BATCHES:
        step(*batch(counts))
    *first, fourth, fifth = BATCHES
    expected = [("run", counts) for counts in first]
    expected += ["capture", ("run", fourth), "captured", ("replay", fourth), ("replay", fifth)]
    assert events == expected


@pytest.mark.parametrize("change", ["pixel_values", "labels", "segments or masks"])
def test_a_batch_of_another_shape_is_refused(change: str) -> None:
    model = seeded_model()
    step = graphed_step.GraphedStep(model, optimizer_of(model)[0], CLIP)
    pixel_values, targets = batch([2, 1])
    step(pixel_values, targets)
    before = [p.clone() for p in model.parameters()]
    if change == "pixel_values":
        pixel_values = pixel_values[..., :32]
    elif change == "labels":
        targets = targets.padded(MOST + 1)
    else:
        targets = small_batch([2, 1], masks=True)[1].padded(MOST)
    with pytest.raises(ValueError, match=f"{change}: expected .* as in the first batch, got"):
        step(pixel_values, targets)
    assert all(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_run_goes_on_without_a_graph_and_back() -> None:
    model = seeded_model()
    optimizer, _ = optimizer_of(model)
    graphed_step.GraphedStep(model, optimizer, CLIP)(*batch([2, 1]))
    saved = optimizer.state_dict()
    continued, _ = optimizer_of(model)
    continued.load_state_dict(saved)
    graphed_step.rates_on_host(continued)
    assert [group["lr"] for group in continued.param_groups] == pytest.approx([RATE / 2, RATE])
    assert not any(isinstance(group["lr"], Tensor) for group in continued.param_groups)
    model(*batch([1, 1])).loss.backward()
    continued.step()
    assert {state["step"].item() for state in continued.state.values()} == {2.0}
    graphed_step.rates_on_device(continued, torch.device(DEVICE))
    for group in continued.param_groups:
        assert group["capturable"] and group["lr"].device.type == DEVICE
    assert {state["step"].device.type for state in continued.state.values()} == {DEVICE}
