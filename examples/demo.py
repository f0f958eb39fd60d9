"""The main job from end to end: write scenes, predict them with the shipped weights, measure, draw.

    python examples/demo.py --out demo

OUT gets the scenes, the predictions of some of them, and overview.png with those side by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluate import evaluate
from PIL import Image

from maskformer_fast import MaskFormer
from maskformer_fast.data.coco_panoptic import CocoPanoptic
from maskformer_fast.data.shapes import write_scenes
from maskformer_fast.images import read_rgb
from maskformer_fast.predict import default_weights, predict, write_prediction

SPLIT, SEED = "demo", 2024  # the shipped weights were trained on another seed
PICTURES = 4
ROW_HEIGHT, MARGIN = 320, 12  # of the overview, pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--scenes", type=int, default=100, help="how many to measure on")
    arguments = parser.parse_args()

    root, predictions = arguments.out / "scenes", arguments.out / "predictions"
    write_scenes(root, count=arguments.scenes, seed=SEED, split=SPLIT, progress=True)
    model = MaskFormer.from_pretrained(default_weights())
    figures = evaluate(model, CocoPanoptic.from_split(root, SPLIT))
    print(
        f"{arguments.scenes} unseen scenes: panoptic quality {figures['pq']:.3f}"
        f" (SQ {figures['sq']:.3f}, RQ {figures['rq']:.3f}), mIoU {figures['miou']:.3f}"
    )

    columns = []
    for path in sorted((root / SPLIT).iterdir())[:PICTURES]:
        image = read_rgb(path)
        [prediction] = predict(model, [image])
        document = write_prediction(prediction, image, predictions, path.stem, str(path))
        columns.append([path, predictions / document["overlay"]])
    overview(columns).save(arguments.out / "overview.png")
    print(f"pictures: {predictions} and {arguments.out / 'overview.png'}")


def overview(columns: list[list[Path]]) -> Image.Image:
    """A picture and its overlay below it, column by column, all of one height."""
    resized = [[at_height(Image.open(path), ROW_HEIGHT) for path in column] for column in columns]
    widths = [max(picture.width for picture in column) + MARGIN for column in resized]
    rows = len(resized[0])
    sheet = Image.new("RGB", (sum(widths), rows * (ROW_HEIGHT + MARGIN)), "white")
    for index, column in enumerate(resized):
        for row, picture in enumerate(column):
            sheet.paste(picture, (sum(widths[:index]), row * (ROW_HEIGHT + MARGIN)))
    return sheet


def at_height(picture: Image.Image, height: int) -> Image.Image:
    return picture.convert("RGB").resize((round(picture.width * height / picture.height), height))


if __name__ == "__main__":
    main()
