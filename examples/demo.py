"""The main job from end to end: write scenes, predict them with the shipped weights, measure, draw.

python examples/demo.py --out demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluate import evaluate

from maskformer_fast import MaskFormer
from maskformer_fast.cli import main as command_line
from maskformer_fast.data.coco_panoptic import CocoPanoptic
from maskformer_fast.data.shapes import write_scenes
from maskformer_fast.predict import default_weights

SPLIT, SEED = "demo", 2024  # the shipped weights were trained on other seeds
PICTURES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--scenes", type=int, default=100, help="how many to measure on")
    arguments = parser.parse_args()

    root = arguments.out / "scenes"
    write_scenes(root, count=arguments.scenes, seed=SEED, split=SPLIT, progress=True)
    dataset = CocoPanoptic.from_split(root, SPLIT)
    figures = evaluate(MaskFormer.from_pretrained(default_weights()), dataset)
    print(f"{arguments.scenes} unseen scenes: panoptic quality {figures['pq']:.3f}", end=" ")
    print(f"(SQ {figures['sq']:.3f}, RQ {figures['rq']:.3f}), mIoU {figures['miou']:.3f}")

    pictures = sorted((root / SPLIT).iterdir())[:PICTURES]
    status = command_line(
        ["predict", *map(str, pictures), "--out", str(arguments.out / "predictions")]
    )
    if status:
        raise SystemExit(status)
    print(f"overlays, maps and tables: {arguments.out / 'predictions'}")


if __name__ == "__main__":
    main()
