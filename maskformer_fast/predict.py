"""From pictures to segments: preprocess, run the model, post-process, and write the result.

    model = MaskFormer.from_pretrained(default_weights())
    [prediction] = predict(model, [read_rgb("street.jpg")], task="panoptic")
    prediction.segmentation, prediction.segments

and `write_prediction` draws it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects
from torch import Tensor

from maskformer_fast.data.files import id_map_to_rgb
from maskformer_fast.images import preprocess
from maskformer_fast.model import MaskFormer, MaskFormerOutput
from maskformer_fast.ops.checks import one_of
from maskformer_fast.overlay import overlay
from maskformer_fast.post_process import (
    post_process_instance_segmentation,
    post_process_panoptic_segmentation,
    post_process_semantic_segmentation,
)

TASKS = ("panoptic", "semantic", "instance")
MAX_8_BITS = 255

Picture = NDArray[np.uint8] | Image.Image  # [H, W, 3] RGB


class Prediction(NamedTuple):
    """The segments of one picture.

    segmentation  ids of segments, 0 where there is none; for "semantic" classes, everywhere one
    segments      dicts with id, label_id and label; area (pixels) and box (x0 y0 x1 y1, half-open
                  pixel edges) of what the map shows; score and was_fused, but not for "semantic".
                  An instance that others hide has area 0.
    """

    task: str
    segmentation: NDArray[np.integer]  # [H, W]
    segments: list[dict[str, Any]]


def default_weights() -> Path:
    """The folder of the small model of generated shapes that comes with the package."""
    return Path(__file__).parent / "weights" / "shapes"


@torch.inference_mode()
def predict(
    model: MaskFormer,
    images: Sequence[Picture],
    task: str = "panoptic",
    *,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_threshold: float = 0.8,
    dialect: str = "maskformer",
) -> list[Prediction]:
    """Predict every image at its own size.

    model              in evaluation mode
    images             RGB of any sizes, as [H, W, 3] uint8 or PIL; they make one batch, padded to
                       the largest, on the model's device
    task               "panoptic", "semantic" or "instance"
    threshold          least score of a segment; not for "semantic"
    mask_threshold, overlap_threshold   of `panoptic_map`; for "panoptic" only
    dialect            rules of `post_process`; not for "instance"

    Raises TypeError or ValueError naming the argument that is off.
    """
    one_of("task", task, TASKS)
    if model.training:
        raise ValueError("model: expected one in evaluation mode, call model.eval() first")
    pixel_values, pixel_mask, sizes = preprocess(images, model.config)
    device = next(model.parameters()).device
    output: MaskFormerOutput = model(pixel_values.to(device), pixel_mask=pixel_mask.to(device))
    results: list[dict[str, Any]]
    if task == "panoptic":
        results = post_process_panoptic_segmentation(
            output, threshold, mask_threshold, overlap_threshold, None, sizes, dialect=dialect
        )
    elif task == "instance":
        results = post_process_instance_segmentation(output, threshold, target_sizes=sizes)
    else:
        maps: list[Any] = post_process_semantic_segmentation(output, sizes, dialect=dialect)
        results = [{"segmentation": found, "segments_info": _classes(found)} for found in maps]
    return [_prediction(task, result, model.config.id2label) for result in results]


def write_prediction(
    prediction: Prediction, image: Picture, folder: str | Path, name: str, file: str
) -> dict[str, Any]:
    """Write `name`.overlay.png, `name`.map.png and `name`.json into `folder`, made if need be.

    The map holds ids as COCO panoptic does, id = R + 256 G + 65536 B; for "semantic" classes as
    grey of 8 bits, of 16 where one is above 255. Returns what the JSON says of `file`.
    """
    task, segmentation, segments = prediction
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    height, width = segmentation.shape
    document = {
        "file": file,
        "height": height,
        "width": width,
        "task": task,
        "map": f"{name}.map.png",
        "overlay": f"{name}.overlay.png",
        "segments": segments,
    }
    names = {segment["label_id"]: segment["label"] for segment in segments}
    overlay(image, segmentation, segments, names).save(folder / document["overlay"])
    _map_picture(prediction).save(folder / document["map"])
    (folder / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return document


def _map_picture(prediction: Prediction) -> Image.Image:
    if prediction.task != "semantic":
        return Image.fromarray(id_map_to_rgb(prediction.segmentation))
    depth = np.uint8 if prediction.segmentation.max() <= MAX_8_BITS else np.uint16
    return Image.fromarray(prediction.segmentation.astype(depth))


def _classes(classes: Tensor) -> list[dict[str, Any]]:
    """The classes in a map [H, W], as segments with their number."""
    return [{"id": label, "label_id": label} for label in classes.unique().tolist()]


def _prediction(task: str, result: Mapping[str, Any], id2label: Mapping[int, str]) -> Prediction:
    """A result of `post_process` with names, areas and boxes."""
    segmentation = result["segmentation"].cpu().numpy()  # [H, W]
    infos = result["segments_info"]
    count = 1 + max((info["id"] for info in infos), default=0)
    areas = np.bincount(segmentation.ravel(), minlength=count)
    places = find_objects(segmentation + 1, count)  # (rows, columns) of an id, None: not in the map
    segments = []
    for info in infos:
        rows, columns = places[info["id"]] or (slice(0, 0), slice(0, 0))
        segments.append(
            {
                **info,
                "label": id2label.get(info["label_id"], f"class {info['label_id']}"),
                "area": int(areas[info["id"]]),
                "box": [columns.start, rows.start, columns.stop, rows.stop],
            }
        )
    return Prediction(task, segmentation, segments)
