"""The whole model: Swin-T, one image to panoptic segments, and one training step.

Weights are random and the same on both sides. In inference the 23 surest queries are kept, and
under the backend "cpu" masks come from the model's composed filters instead of the op. The
optimizer's step has length 0, so that every call sees the same weights. In training transformers
also supervises the queries before the first layer, and leaves out a LayerNorm, so that its loss
is another number: its logits are compared.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import inputs
import peers
import torch
from differences import BFLOAT16, all_apart, different_pixels
from race import Race, Settings, Unavailable
from torch import Tensor, nn

from maskformer_fast import MaskFormer, MaskFormerConfig
from maskformer_fast.post_process import post_process_panoptic_segmentation


class Shape(NamedTuple):
    step: str
    B: int
    T: int
    K: int
    size: inputs.Size
    dtype: str = "float32"  # of autocast


SHAPES = [Shape("inference", 1, 23, 150, (512, 512)), Shape("training", 2, 12, 150, (512, 512))]
CUDA_SHAPES = [Shape("training", 16, 20, 150, (512, 512), "bfloat16")]
QUICK_SHAPES = [Shape("inference", 1, 23, 150, (256, 256))]
LARGEST_GRADIENT_NORM = 0.01  # as published


def _not_compiled(*_: Any) -> NoReturn:
    raise Unavailable("left out: training breaks into many graphs, which compile for minutes")


INFERENCE_PEERS = {
    "transformers": peers.transformers_inference,
    "torch.compile": peers.compiled(peers.transformers_inference),
}
TRAINING_PEERS = {
    "transformers": peers.transformers_training_step,
    "torch.compile": _not_compiled,
}
PEERS = tuple(INFERENCE_PEERS)


def models(num_labels: int, training: bool) -> tuple[MaskFormer, nn.Module | None]:
    """Ours and, where transformers is installed, theirs with the same weights."""
    try:
        theirs = peers.transformers_model(num_labels, auxiliary=training)
    except ImportError:
        ours = MaskFormer(MaskFormerConfig(num_labels=num_labels, dropout=0.0))
        inputs.spread_out(ours)
        return ours, None
    inputs.spread_out(theirs)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return MaskFormer.from_pretrained(folder), theirs


def training_step(
    model: nn.Module, dtype: torch.dtype, forward: Callable[[], Any]
) -> Callable[[], tuple[Tensor, Tensor]]:
    """A step under autocast that returns the last layer's class logits and the loss."""
    on_gpu = next(model.parameters()).is_cuda
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, capturable=on_gpu)

    def step() -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        with torch.autocast("cuda" if on_gpu else "cpu", dtype, enabled=dtype != torch.float32):
            outputs = forward()
        outputs.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT_NORM)
        optimizer.step()
        return outputs.class_queries_logits.detach(), outputs.loss.detach()

    return step


def make_race(settings: Settings, shape: Shape) -> Race:
    training = shape.step == "training"
    pair = [
        model and model.to(settings.device).train(training) for model in models(shape.K, training)
    ]
    generator = torch.Generator().manual_seed(2)
    pixel_values = torch.randn(shape.B, 3, *shape.size, generator=generator).to(settings.device)
    race = training_race if training else inference_race
    return race(settings, shape, *pair, pixel_values)


def inference_race(
    settings: Settings, shape: Shape, ours: nn.Module, theirs: Any, pixel_values: Tensor
) -> Race:
    with torch.inference_mode():
        scores, labels = ours(pixel_values).class_queries_logits.softmax(-1).max(-1)
    found = scores[labels < shape.K].sort(descending=True).values
    options = {
        "threshold": found[shape.T - 1 : shape.T + 1].mean().item(),
        "mask_threshold": 0.05,  # random queries are not sure of anything
        "overlap_mask_area_threshold": 0.05,
        "label_ids_to_fuse": set(),
    }

    def segment(*_: Any) -> Tensor:
        with torch.inference_mode():
            outputs = ours(pixel_values)
        [result] = post_process_panoptic_segmentation(
            outputs, **options, target_sizes=[shape.size], dialect="transformers"
        )
        return result["segmentation"][None]

    return Race(
        settings,
        title="whole model",
        shape=shape,
        ops=("mask_logits", "panoptic_map"),  # the backend of mask_logits decides for the filters
        inputs=(theirs, pixel_values, options),
        ours=segment,
        peers=INFERENCE_PEERS,
        baseline="transformers",
        difference=different_pixels,
        capturable=False,
    )


def training_race(
    settings: Settings, shape: Shape, ours: nn.Module, theirs: Any, pixel_values: Tensor
) -> Race:
    targets = inputs.scene(shape.B, shape.T, shape.T, shape.K, (128, 128), shape.size).targets
    targets = targets.to(settings.device)
    prepare = partial(training_step, dtype=getattr(torch, shape.dtype))
    step = prepare(ours, forward=lambda: ours(pixel_values, targets))
    tolerance = 1e-4 if shape.dtype == "float32" else BFLOAT16
    return Race(
        settings,
        title="whole model",
        shape=shape,
        ops=("matching_cost", "linear_assignment", "mask_logits", "mask_loss"),
        inputs=(theirs, pixel_values, targets, prepare),
        ours=lambda *_: step(),
        peers=TRAINING_PEERS,
        baseline="transformers",
        difference=lambda got, expected: all_apart(got, expected[: len(got)], tolerance),
    )


def test_model(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
