"""examples/train.py: a run, its resumption, its evaluation; examples/evaluate.py by hand."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import small_config

from maskformer_fast import MaskFormer
from maskformer_fast.data.coco_panoptic import CocoPanoptic
from maskformer_fast.data.shapes import CATEGORIES, write_scenes

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


def train(data: Path, out: Path, *options: str) -> dict:
    command = [sys.executable, EXAMPLES / "train.py", "--config", data / "config.json"]
    command += ["--data", data, "--out", out, "--batch-size", "4", "--workers", "0"]
    command += ["--crop", "64", "--warmup", "2", "--precision", "no", "--checkpoint-every", "3"]
    done = subprocess.run(
        [*map(str, command), *options], check=True, capture_output=True, text=True, timeout=300
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_resumed_run_ends_with_the_same_weights(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    figures = train(data, whole, "--steps", str(STEPS))
    assert figures["images"] == 4 and 0 <= figures["pq"] <= 1 and 0 <= figures["miou"] <= 1
    assert json.loads((whole / "evaluation.json").read_text()) == figures

    train(data, parts, "--steps", str(STEPS), "--stop-after", "3")
    train(data, parts, "--steps", str(STEPS), "--resume")
    expected, got = (load_file(out / "model.safetensors") for out in (whole, parts))
    assert all(got[name].equal(tensor) for name, tensor in expected.items())
    assert MaskFormer.from_pretrained(parts).config.num_labels == len(CATEGORIES)


def test_the_baseline_trains(data, tmp_path):
    figures = train(data, tmp_path, "--model", "per_pixel", "--steps", "2")
    assert set(figures) == {"images", "miou"}


def test_a_perfect_prediction_scores_one(data, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
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
