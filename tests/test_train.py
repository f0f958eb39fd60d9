"""examples/train.py: a run, its resumption, its evaluation; examples/evaluate.py by hand."""

import argparse
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_models import small_config

from maskformer_fast import MaskFormer
from maskformer_fast.data.coco_panoptic import CocoPanoptic
from maskformer_fast.data.shapes import CATEGORIES, write_scenes

for dependency in ("accelerate", "torchmetrics"):  # extra "train", not there in `make gpu`
    pytest.importorskip(dependency)

EXAMPLES = Path(__file__).parent.parent / "examples"
STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_scenes(root, count=16, seed=5, size=64, split="train")
    write_scenes(root, count=4, seed=5, size=64, split="val")
    small_config(num_labels=len(CATEGORIES), thing_classes=list(range(3, 10))).save(
        root / "config.json"
    )
    return root


SCRIPT = [str(EXAMPLES / "train.py")]
# As on a GPU: --cuda-graph is not refused, and takes its own step, uncaptured on the CPU.
UNREFUSED = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import train;"
UNREFUSED = ["-c", f"{UNREFUSED} train.graph_obstacle = lambda *_: None; train.main()"]
GRAPH = ("--cuda-graph", "--max-targets", "16")


def run(data: Path, out: Path, *options: str, script: list[str] = SCRIPT) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a small run."""
    command = [sys.executable, *script, "--config", data / "config.json"]
    command += ["--data", data, "--out", out, "--batch-size", "4", "--workers", "0"]
    command += ["--crop", "64", "--warmup", "2", "--precision", "no", "--checkpoint-every", "3"]
    done = subprocess.run(
        [*map(str, command), *options], capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def train(data: Path, out: Path, *options: str, script: list[str] = SCRIPT) -> dict:
    status, figures, log = run(data, out, *options, script=script)
    assert status == 0, log
    return json.loads(figures.splitlines()[-1])


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(other[name].equal(tensor) for name, tensor in one.items())


def test_a_resumed_run_ends_with_the_same_weights(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    figures = train(data, whole, "--steps", str(STEPS))
    assert figures["images"] == 4 and 0 <= figures["pq"] <= 1 and 0 <= figures["miou"] <= 1
    assert json.loads((whole / "evaluation.json").read_text()) == figures

    train(data, parts, "--steps", str(STEPS), "--stop-after", "3")
    train(data, parts, "--steps", str(STEPS), "--resume")
    assert equal(weights(whole), weights(parts))
    assert MaskFormer.from_pretrained(parts).config.num_labels == len(CATEGORIES)


def test_a_resumed_run_with_the_step_of_a_graph_ends_with_the_same_weights(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(data, whole, "--steps", str(STEPS), *GRAPH, script=UNREFUSED)
    train(data, parts, "--steps", str(STEPS), "--stop-after", "2", *GRAPH, script=UNREFUSED)
    stopped = weights(parts)
    train(data, parts, "--steps", str(STEPS), "--resume", *GRAPH, script=UNREFUSED)
    assert equal(weights(whole), weights(parts)) and not equal(stopped, weights(parts))


def test_a_run_goes_on_with_and_without_a_graph(data, tmp_path):
    """Pictures that fill the crop: with padding, which the graph alone has, losses would differ."""
    plain, mixed = tmp_path / "plain", tmp_path / "mixed"
    options = ("--steps", str(STEPS), "--scale", "1", "1.5")
    train(data, plain, *options)
    train(data, mixed, *options, "--stop-after", "2")
    train(data, mixed, *options, "--stop-after", "4", "--resume", *GRAPH, script=UNREFUSED)
    train(data, mixed, *options, "--resume")
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(mixed)[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_an_image_with_too_many_targets_is_named_and_nothing_is_lost(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--steps", "3", "--scale", "1", "1")
    few = ("--cuda-graph", "--max-targets", "7")  # the third batch has an image with more
    status, _, log = run(data, parts, *options, *few, script=UNREFUSED)
    message = r"ValueError: \d+\.png: expected at most 7 targets \(--max-targets\), got 8"
    assert status == 1 and re.search(message, log)
    place = torch.load(parts / "checkpoint" / "custom_checkpoint_0.pkl", weights_only=False)
    assert place["step"] > 0
    train(data, parts, *options, "--resume", *GRAPH, script=UNREFUSED)
    train(data, whole, *options, *GRAPH, script=UNREFUSED)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_replayed_cuda_graph_trains_as_plain_steps_do(data, tmp_path):
    """Sums by atomics differ a little: little beside what the replayed steps change."""
    options = ("--steps", "10", "--scale", "1", "1.5")
    train(data, tmp_path / "plain", *options)
    train(data, tmp_path / "warm_up", *options, *GRAPH, "--stop-after", "3")
    train(data, tmp_path / "graph", *options, *GRAPH)
    plain, warm_up, graph = (
        torch.cat([x.double().flatten() for _, x in sorted(weights(tmp_path / name).items())])
        for name in ("plain", "warm_up", "graph")
    )
    assert (graph - plain).norm() < 0.2 * (warm_up - plain).norm()


def test_a_graph_without_a_gpu_is_refused(data, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    status, _, log = run(data, tmp_path, "--steps", "1", *GRAPH)
    assert status == 1 and "--cuda-graph: expected a CUDA GPU, got cpu" in log


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"max_targets": None}, "needs --max-targets"),
        ({"precision": "fp16"}, "expected --precision bf16 or no"),
        ({"num_processes": 2}, "expected one process, got 2"),
        ({"device": torch.device("mps")}, "expected a CUDA GPU, got mps"),
    ],
)
def test_why_a_step_cannot_be_a_graph(changes, message):
    import train

    values = {"max_targets": 4, "precision": "bf16", "num_processes": 1}
    values = {"device": torch.device("cuda", 0), **values, **changes}
    found = train.graph_obstacle(SimpleNamespace(**values), argparse.Namespace(**values))
    assert found is None if message is None else message in found


def test_the_baseline_trains(data, tmp_path):
    figures = train(data, tmp_path, "--model", "per_pixel", "--steps", "2")
    assert set(figures) == {"images", "miou"}


def test_a_perfect_prediction_scores_one(data, monkeypatch):
    import evaluate

    dataset = CocoPanoptic.from_split(data, "val")

    def truth(_model, dataset, shown=lambda index: True):
        for sample in dataset:
            index = sample.segments.long()
            labels = torch.cat([sample.labels, torch.tensor([-1])])[index]
            predicted = labels.where((labels >= 0) & shown(index), 10)
            yield labels, torch.stack([predicted, index + 1], dim=2), labels, index

    model = MaskFormer(small_config(num_labels=10, thing_classes=list(range(3, 10))))
    monkeypatch.setattr(evaluate, "predictions", truth)
    figures = evaluate.evaluate(model, dataset)
    assert figures["pq"] == pytest.approx(1) and figures["miou"] == pytest.approx(1)

    monkeypatch.setattr(evaluate, "predictions", partial(truth, shown=lambda index: index < 0))
    assert evaluate.evaluate(model, dataset)["pq"] == 0  # nothing predicted, nothing earned
