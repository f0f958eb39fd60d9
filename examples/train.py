"""Train MaskFormer, or the per-pixel baseline, on panoptic data in COCO format.

    python examples/train.py --config examples/shapes.json --data scenes --out runs/shapes
    torchrun --nproc-per-node 8 examples/train.py ...          # or: accelerate launch

DATA holds train/, panoptic_train/, val/, panoptic_val/ and annotations/panoptic_{train,val}.json,
as `python -m maskformer_fast.data.shapes DATA` writes it and as COCO is unpacked (with
--train-split train2017 --val-split val2017). With --resume a run goes on from its last checkpoint.
With --cuda-graph --max-targets N the whole step is one CUDA graph (graphed_step.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from evaluate import evaluate
from graphed_step import GraphedStep, rates_on_host
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from maskformer_fast import MaskFormer, MaskFormerConfig, PerPixelBaseline, Targets
from maskformer_fast.data import transforms
from maskformer_fast.data.coco_panoptic import CocoPanoptic
from maskformer_fast.data.sample import PanopticSample

LOG_EVERY = 20  # steps; a host read each


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="MaskFormerConfig as JSON")
    parser.add_argument("--data", type=Path, required=True, help="folder in COCO panoptic format")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--val-split", default="val")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and weights")
    parser.add_argument("--model", choices=("maskformer", "per_pixel"), default="maskformer")
    parser.add_argument("--backbone-weights", help="ImageNet weights: folder or hub id")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--steps", type=int, default=160_000)
    parser.add_argument("--stop-after", type=int, help="stop there, to go on with --resume")
    parser.add_argument("--batch-size", type=int, default=16, help="of each process")
    parser.add_argument("--learning-rate", type=float, default=6e-5)
    parser.add_argument("--backbone-factor", type=float, default=1.0, help="of its learning rate")
    parser.add_argument("--weight-decay", type=float, default=1e-2)
    parser.add_argument("--warmup", type=int, default=1500, help="steps")
    parser.add_argument("--clip", type=float, default=0.01, help="gradient norm")
    parser.add_argument("--scale", type=float, nargs=2, default=(0.5, 2.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--crop", type=int, default=512, help="side in pixels")
    parser.add_argument("--target-stride", type=int, default=1, help="train on every Nth pixel")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default="bf16")
    parser.add_argument("--cuda-graph", action="store_true", help="capture the step; one process")
    parser.add_argument("--max-targets", type=int, help="of an image; pads every batch to it")
    parser.add_argument("--save-half", action="store_true", help="round the weights to float16")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--checkpoint-every", type=int, default=5000, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Stream(Dataset[PanopticSample]):
    """`length` samples of a data set, epoch after epoch, each epoch in an order of its own.

    Order and augmentation of sample p follow from (seed, p) alone, whatever the number of workers
    and wherever a run was interrupted.
    """

    def __init__(self, dataset: CocoPanoptic, seed: int, length: int) -> None:
        self.dataset, self.seed, self.length = dataset, seed, length
        self.order = lru_cache(2)(self._order)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> PanopticSample:
        epoch, place = divmod(position, len(self.dataset))
        [seed] = np.random.SeedSequence([self.seed, position]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            return self.dataset[int(self.order(epoch)[place])]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))


@dataclass
class Run:
    """What is trained, with its place in the run; the place is part of every checkpoint."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    loader: DataLoader
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.schedule.load_state_dict(state["schedule"])


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        mixed_precision=arguments.precision,
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
    )
    if arguments.cuda_graph:
        obstacle = graph_obstacle(accelerator, arguments)
        if obstacle is not None:
            raise SystemExit(f"--cuda-graph: {obstacle}")
    set_seed(arguments.seed)
    config = MaskFormerConfig.load(arguments.config)
    run = prepare(accelerator, config, arguments)
    if arguments.resume:
        accelerator.load_state(str(arguments.out / "checkpoint"))
    train(run, arguments)
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(run.model, keep_fp32_wrapper=False).eval()
        if arguments.save_half:
            model.half()
        if isinstance(model, MaskFormer):
            model.save_pretrained(arguments.out)
        model.float()
        figures = evaluate(model, CocoPanoptic.from_split(arguments.data, arguments.val_split))
        (arguments.out / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
        print(json.dumps(figures))
    accelerator.end_training()


def graph_obstacle(accelerator: Accelerator, arguments: argparse.Namespace) -> str | None:
    """Why the training step cannot be a CUDA graph; None if it can."""
    if arguments.max_targets is None:
        return "needs --max-targets, the most targets of an image: a graph's shapes are fixed"
    if arguments.precision == "fp16":
        return "expected --precision bf16 or no; the loss scaling of fp16 reads the host"
    if accelerator.num_processes > 1:
        return f"expected one process, got {accelerator.num_processes}"
    if accelerator.device.type != "cuda":
        return f"expected a CUDA GPU, got {accelerator.device}"
    return None


def prepare(
    accelerator: Accelerator, config: MaskFormerConfig, arguments: argparse.Namespace
) -> Run:
    """Model, optimiser, schedule and data of a run that begins."""
    model = build_model(arguments, config)
    transform = augmentation(arguments, config)
    dataset = CocoPanoptic.from_split(arguments.data, arguments.train_split, transform=transform)
    length = arguments.steps * arguments.batch_size * accelerator.num_processes
    optimizer = torch.optim.AdamW(parameter_groups(model, arguments), lr=arguments.learning_rate)
    loader = DataLoader(
        Stream(dataset, arguments.seed, length),
        arguments.batch_size,
        num_workers=arguments.workers,
        persistent_workers=arguments.workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=partial(collate, arguments, config),
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(poly, arguments))
    run = Run(accelerator, model, optimizer, schedule, loader)
    accelerator.register_for_checkpointing(run)
    return run


def build_model(arguments: argparse.Namespace, config: MaskFormerConfig) -> nn.Module:
    model = MaskFormer(config) if arguments.model == "maskformer" else PerPixelBaseline(config)
    if arguments.backbone_weights:
        model.pixel_level.load_backbone(arguments.backbone_weights)
    return model.to(memory_format=torch.channels_last)


def parameter_groups(model: nn.Module, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """No weight decay on norms, biases and embeddings; the backbone has its own learning rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.dim() > 1 and not any(w in name for w in ("embeddings", "bias_table"))
        in_backbone = name.startswith("pixel_level.backbone.")
        groups.setdefault((decays, in_backbone), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": arguments.weight_decay if decays else 0.0,
            "lr": arguments.learning_rate * (arguments.backbone_factor if in_backbone else 1.0),
        }
        for (decays, in_backbone), parameters in groups.items()
    ]


def poly(arguments: argparse.Namespace, step: int) -> float:
    """Linear warm-up, then (1 - progress)^0.9."""
    if step < arguments.warmup:
        return (step + 1) / arguments.warmup
    return (1 - min(step, arguments.steps) / (arguments.steps + 1)) ** 0.9


def augmentation(arguments: argparse.Namespace, config: MaskFormerConfig) -> transforms.Compose:
    return transforms.Compose(
        transforms.RandomScale(config.short_side, tuple(arguments.scale)),
        transforms.RandomCrop((arguments.crop, arguments.crop)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(),
    )


def collate(
    arguments: argparse.Namespace, config: MaskFormerConfig, samples: list[PanopticSample]
) -> tuple[Tensor, Targets]:
    """pixel_values [B, 3, H, W] and targets, of every `target_stride`-th pixel.

    For a CUDA graph all batches have one size, that of the crop.
    """
    most = arguments.max_targets
    for sample in samples:
        if most is not None and len(sample.labels) > most:
            raise ValueError(
                f"{sample.file_name}: expected at most {most} targets (--max-targets),"
                f" got {len(sample.labels)}"
            )
    batch = transforms.collate(
        samples,
        mean=config.image_mean,
        std=config.image_std,
        size_divisor=config.size_divisor,
        size=(arguments.crop, arguments.crop) if arguments.cuda_graph else None,
        num_classes=config.num_labels,
        pad_to=most,
    )
    targets, stride = batch["targets"], arguments.target_stride
    every = targets.segments[:, ::stride, ::stride].contiguous()
    pixel_values = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
    return pixel_values, replace(targets, segments=every)


def plain_step(run: Run, arguments: argparse.Namespace) -> Callable[[Tensor, Targets], Tensor]:
    """The training step, one operator after another, in as many processes as there are."""
    rates_on_host(run.optimizer)

    def step(pixel_values: Tensor, targets: Targets) -> Tensor:
        loss = run.model(pixel_values, targets.to(run.accelerator.device)).loss
        run.accelerator.backward(loss)
        run.accelerator.clip_grad_norm_(run.model.parameters(), arguments.clip)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def train(run: Run, arguments: argparse.Namespace) -> None:
    """Optimise until `steps`, with a checkpoint now and then and at the end."""
    accelerator, log = run.accelerator, arguments.out / "log.jsonl"
    progress = tqdm(
        total=arguments.steps,
        initial=run.step,
        disable=not (accelerator.is_main_process and sys.stderr.isatty()),
    )
    batches = iter(accelerator.skip_first_batches(run.loader, run.step))
    last = min(arguments.steps, arguments.stop_after or arguments.steps)
    run.model.train()
    if arguments.cuda_graph:
        step = GraphedStep(run.model, run.optimizer, arguments.clip)
    else:
        step = plain_step(run, arguments)
    while run.step < last:
        try:
            pixel_values, targets = next(batches)
        except ValueError:  # of data that cannot be trained on: what was learned so far is kept
            if accelerator.num_processes == 1:
                accelerator.save_state(str(arguments.out / "checkpoint"))
            raise
        loss = step(pixel_values, targets)
        run.schedule.step()
        run.step += 1
        progress.update()
        if run.step % LOG_EVERY == 0 and accelerator.is_main_process:
            rate = float(run.schedule.get_last_lr()[0])
            entry = {"step": run.step, "loss": loss.item(), "rate": rate}
            progress.set_postfix(loss=f"{entry['loss']:.3f}")
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        if run.step % arguments.checkpoint_every == 0 or run.step == last:
            accelerator.save_state(str(arguments.out / "checkpoint"))


if __name__ == "__main__":
    main()
