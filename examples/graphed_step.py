"""A training step without a host read, and its replay as one CUDA graph.

    step = GraphedStep(model, optimizer, clip)
    loss = step(pixel_values, targets)          # as often as wanted, always with the same shapes

Batches are copied into tensors that stay where they are. On a GPU the first steps run one operator
after another, on a stream of their own, as capture wants it; then one is captured, and from there
on a step is one launch. All of them train: capturing itself computes nothing. On the CPU no step
is captured. Learning rates are tensors that a scheduler fills; dropout draws from torch's
generator, which a graph advances as it is replayed.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from maskformer_fast import Targets

WARM_UP = 3  # steps before the capture: libraries choose algorithms, the optimiser makes its state
UNCAPTURED = "This instance was constructed with capturable=True"  # torch's warning of the warm-up


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: float,
    pixel_values: Tensor,
    targets: Targets,
) -> Tensor:
    """Forward, loss, backward, gradient clipping, update: the loss, a scalar. No host read."""
    optimizer.zero_grad(set_to_none=True)  # a captured backward writes gradients, and adds to none
    loss = model(pixel_values, targets).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()


class GraphedStep:
    """`train_step` on batches of one shape, replayed as a CUDA graph where there is a GPU.

    model, optimizer  on their device already, and, if a run goes on, with their state loaded: the
                      optimiser's learning rates and step counts move to the device here
    clip              largest norm of all gradients
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> None:
        self.model, self.optimizer, self.clip = model, optimizer, clip
        self.device = next(model.parameters()).device
        self.inputs: tuple[Tensor, Targets] | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.loss: Tensor | None = None
        self.steps_to_warm_up = WARM_UP
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        rates_on_device(optimizer, self.device)

    def __call__(self, pixel_values: Tensor, targets: Targets) -> Tensor:
        """Train on a batch: its loss, which the next step overwrites once there is a graph.

        Raises ValueError where a shape is not that of the first batch.
        """
        self._fill(pixel_values, targets)
        if self.stream is None:
            return self._run()
        if self.steps_to_warm_up > 0:
            self.steps_to_warm_up -= 1
            return self._on_stream(self.stream)
        if self.graph is None:
            self.optimizer.zero_grad(set_to_none=True)  # what is freed inside stays reserved
            graph = torch.cuda.CUDAGraph()
            # thread_local: threads that load data may pin memory meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.loss = self._run()
            self.graph = graph
        self.graph.replay()
        assert self.loss is not None
        return self.loss

    def _fill(self, pixel_values: Tensor, targets: Targets) -> None:
        """Copy a batch to where the graph reads it."""
        if self.inputs is None:
            kept = [x.to(self.device, copy=True) for x in parts(pixel_values, targets)]
            self.inputs = kept[0], like(targets, *kept[1:])
            return
        names = ("pixel_values", "labels", "num_targets", "segments or masks")
        batches = (parts(*self.inputs), parts(pixel_values, targets))
        for name, static, new in zip(names, *batches, strict=True):
            if (static.shape, static.dtype) != (new.shape, new.dtype):
                raise ValueError(
                    f"{name}: expected {tuple(static.shape)} {static.dtype} as in the first batch,"
                    f" got {tuple(new.shape)} {new.dtype}"
                )
            static.copy_(new, non_blocking=True)

    def _run(self) -> Tensor:
        assert self.inputs is not None
        return train_step(self.model, self.optimizer, self.clip, *self.inputs)

    def _on_stream(self, stream: torch.cuda.Stream) -> Tensor:
        current = torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", UNCAPTURED)
            loss = self._run()
        current.wait_stream(stream)
        loss.record_stream(current)
        return loss


def parts(pixel_values: Tensor, targets: Targets) -> tuple[Tensor, ...]:
    """The tensors of a batch."""
    return pixel_values, targets.labels, targets.num_targets, targets.pixels


def like(targets: Targets, labels: Tensor, num_targets: Tensor, pixels: Tensor) -> Targets:
    """Targets of other tensors, in the form of `targets`."""
    form = "masks" if targets.segments is None else "segments"
    return Targets(labels, num_targets, **{form: pixels})


def rates_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Learning rates and step counts become tensors on `device`, so that a graph can read them.

    On the CPU, where torch's optimisers refuse to be capturable, only learning rates do.
    """
    capturable = device.type != "cpu"
    for group in optimizer.param_groups:
        group["capturable"] = capturable
        rate = torch.as_tensor(group["lr"], dtype=torch.float32)
        group["lr"] = rate.to(device, copy=True)
    _move_step_counts(optimizer, device)


def rates_on_host(optimizer: torch.optim.Optimizer) -> None:
    """The inverse, for a run that goes on without a graph."""
    for group in optimizer.param_groups:
        group["capturable"], group["lr"] = False, float(group["lr"])
    _move_step_counts(optimizer, torch.device("cpu"))


def _move_step_counts(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    state: dict[str, Any]
    for state in optimizer.state.values():
        state["step"] = state["step"].to(device)
