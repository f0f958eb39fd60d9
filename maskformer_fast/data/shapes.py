"""Generated scenes in COCO panoptic format: textured regions with coloured shapes on them.

Every scene has two or three *stuff* regions with curved borders and one to five *things* that hide
one another. A class has a typical shape or texture and a typical hue; shade, size, rotation, light
and noise vary. Scene i of a split depends only on (seed, split, i).

    python -m maskformer_fast.data.shapes ROOT --train 2000 --val 200 --seed 0 --size 128
"""

import argparse
import colorsys
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from maskformer_fast.data.files import id_map_to_rgb

Array = NDArray[np.floating[Any]]
SegmentInfo = dict[str, Any]


def _category(id: int, name: str, isthing: int, hue: float) -> dict[str, Any]:
    color = [round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.75, 0.9)]
    return {"id": id, "name": name, "isthing": isthing, "color": color}


STUFF_HUES = {"sky": 0.57, "grass": 0.30, "brick": 0.04}
THING_HUES = {
    "circle": 0.00,
    "square": 0.09,
    "triangle": 0.48,
    "star": 0.16,
    "ring": 0.66,
    "cross": 0.77,
    "heart": 0.91,
}
HUE_SPREAD = 0.04
CATEGORIES = [
    _category(id, name, int(name in THING_HUES), hue)
    for id, (name, hue) in enumerate((STUFF_HUES | THING_HUES).items(), start=1)
]
CATEGORY_ID = {category["name"]: category["id"] for category in CATEGORIES}

MAX_THINGS = 5
SHADES = (0.5, 1.0)  # darkest and brightest thing of a scene
DIAMETER = (0.22, 0.50)  # of the picture's short side
MIN_VISIBLE = 0.25  # of a thing's area
MIN_PIXELS = 16
PLACEMENTS = 12  # tried for a thing before it is left out
SUPERSAMPLING = 3
SPECIAL_SHARE = 0.05  # of the scenes have a void patch or an `iscrowd` segment
SIZE_VARIATION = 0.25


def _circle(radius: float = 1.0) -> Array:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return _points(radius * np.cos(angle), radius * np.sin(angle))


def _star(points: int, inner: float) -> Array:
    angle = np.pi * np.arange(2 * points) / points
    radius = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return _points(radius * np.sin(angle), -radius * np.cos(angle))


def _cross(arm: float) -> Array:
    corner = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
    return np.array(corner + [(-x, -y) for x, y in corner], np.float32) * 0.95


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _points(x / 16, -(y + 2.5) / 16)


def _points(x: NDArray[Any], y: NDArray[Any]) -> Array:
    return np.stack([x, y], axis=-1).astype(np.float32)


CONTOURS: dict[str, list[Array]] = {  # in the unit circle; a second contour is a hole
    "circle": [_circle()],
    "square": [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float32) * 0.8],
    "triangle": [_star(3, 0.5)],
    "star": [_star(5, 0.42)],
    "ring": [_circle(), _circle(0.52)],
    "cross": [_cross(0.34)],
    "heart": [_heart()],
}


def scene(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int32], list[SegmentInfo]]:
    """One scene of `size` (H, W).

    Returns the image [H, W, 3] uint8, the map of segment ids [H, W] int32 (0 is void) and the
    COCO `segments_info` of the ids that occur: id, category_id, area, bbox (x, y, width, height)
    and iscrowd.
    """
    picture, layer, names = _background(rng, size)
    thing_layers = _add_things(rng, picture, layer, names)
    void = np.zeros(size, bool)
    crowd = -1
    if rng.random() < SPECIAL_SHARE:
        if rng.random() < 0.5:
            void = _blob(rng, size)
        elif thing_layers:
            crowd = int(rng.choice(thing_layers))
    _light(rng, picture)

    ids = 1 + rng.choice(2**24 - 1, size=len(names), replace=False)
    id_map = np.where(void, 0, ids[layer]).astype(np.int32)  # [H, W]
    segments_info = [
        _segment_info(id_map == ids[index], int(ids[index]), name, int(index == crowd))
        for index, name in enumerate(names)
        if (id_map == ids[index]).any()
    ]
    return np.rint(picture * 255).astype(np.uint8), id_map, segments_info


def write_scenes(
    root: str | Path,
    *,
    count: int,
    seed: int = 0,
    size: int = 128,
    size_variation: float = SIZE_VARIATION,
    split: str = "train",
    progress: bool = False,
) -> Path:
    """Write `count` scenes in COCO panoptic format and return the path of the JSON file.

    Pictures go to `root/{split}`, id maps to `root/panoptic_{split}`, the JSON to
    `root/annotations/panoptic_{split}.json`. Each side is drawn from
    [1 - size_variation, 1 + size_variation] * size pixels. Scenes of two splits differ also when
    the seed is the same.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    if not 0 <= size_variation < 1:
        raise ValueError(f"size_variation: expected a number in [0, 1), got {size_variation}")
    if size * (1 - size_variation) < 16:
        raise ValueError(f"size: expected sides of at least 16 pixels, got {size}")
    root = Path(root)
    json_path = root / "annotations" / f"panoptic_{split}.json"
    for folder in (root / split, root / f"panoptic_{split}", json_path.parent):
        folder.mkdir(parents=True, exist_ok=True)

    images, annotations = [], []
    split_key = zlib.crc32(split.encode())
    for index in tqdm(range(count), desc=split, unit="scene", disable=None if progress else True):
        rng = np.random.default_rng([seed, split_key, index])
        low, high = round(size * (1 - size_variation)), round(size * (1 + size_variation))
        height, width = (int(side) for side in rng.integers(low, high, 2, endpoint=True))
        image, id_map, segments_info = scene(rng, (height, width))
        name = f"{index:06d}.png"
        Image.fromarray(image).save(root / split / name, compress_level=1)
        Image.fromarray(id_map_to_rgb(id_map)).save(root / f"panoptic_{split}" / name)
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        annotations.append({"image_id": index, "file_name": name, "segments_info": segments_info})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    json_path.write_text(json.dumps(content), encoding="utf-8")
    return json_path


def _background(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[Array, NDArray[np.intp], list[str]]:
    """Two or three textures: picture [H, W, 3] in 0..1, texture of a pixel [H, W], their names."""
    names = [str(name) for name in rng.permutation(list(STUFF_HUES))[: rng.integers(2, 4)]]
    picture = _texture(rng, names[0], size)
    layer = np.zeros(size, np.intp)
    rest = np.ones(size, bool)  # the side that the next border may cut
    direction = rng.uniform(0, 2 * np.pi)
    for index, name in enumerate(names[1:], start=1):
        distance = _border(rng, size, direction)  # [H, W], positive on the new side
        cover = (distance + 0.5).clip(0, 1) * rest
        picture += cover[..., None] * (_texture(rng, name, size) - picture)
        inside = (distance > 0) & rest
        layer[inside] = index
        rest = inside if rng.random() < 0.5 else rest & ~inside
        direction += rng.uniform(0.3, 0.7) * np.pi
    return picture, layer, names


def _border(rng: np.random.Generator, size: tuple[int, int], direction: float) -> Array:
    """Distance in pixels [H, W] to a wavy line through the middle part of the picture."""
    along, across = _rotated_grid(size, direction)
    side = float(min(size))
    across = across - rng.uniform(-0.15, 0.15) * side
    for waves in (1, 2, 4):
        phase, height = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.06) * side / waves**0.5
        across = across - height * np.sin(2 * np.pi * waves * along / side + phase)
    return across


def _texture(rng: np.random.Generator, name: str, size: tuple[int, int]) -> Array:
    """Texture [H, W, 3] in 0..1 of a stuff class."""
    side = float(min(size))
    hue = STUFF_HUES[name] + rng.uniform(-HUE_SPREAD, HUE_SPREAD)
    if name == "sky":  # a smooth gradient with faint clouds
        _, across = _rotated_grid(size, rng.uniform(-0.5, 0.5))
        value = 0.85 + 0.2 * across / side + 0.10 * _smooth_noise(rng, size, 5)
        return _shade(hue, rng.uniform(0.25, 0.6), value)
    if name == "grass":  # noisy narrow stripes
        along, across = _rotated_grid(size, rng.uniform(0, np.pi))
        bend = 0.03 * side * _smooth_noise(rng, size, 6)
        stripes = np.sin(2 * np.pi * rng.uniform(14, 22) * (across + bend) / side)
        grain = rng.standard_normal(size, np.float32)
        value = rng.uniform(0.45, 0.7) + 0.10 * stripes + 0.06 * grain
        return _shade(hue, rng.uniform(0.45, 0.75), value)
    brick_height = side / rng.uniform(8, 12)
    along, across = _rotated_grid(size, rng.uniform(-0.3, 0.3))
    row = np.floor(across / brick_height)
    column = along / (2.2 * brick_height) + 0.5 * (row % 2)
    tone = rng.uniform(-0.12, 0.12, 997)[(37 * row + 101 * np.floor(column)).astype(int) % 997]
    mortar = (across / brick_height - row < 0.16) | (column - np.floor(column) < 0.08)
    value = np.where(mortar, 0.75, rng.uniform(0.45, 0.65) + tone)
    return _shade(hue, np.where(mortar, 0.1, rng.uniform(0.35, 0.6)), value)


def _add_things(
    rng: np.random.Generator, picture: Array, layer: NDArray[np.intp], names: list[str]
) -> range:
    """Draw one to five things over picture, layer and names in place; returns their layers."""
    size = layer.shape
    first = len(names)
    areas: list[int] = []
    shades = rng.permutation(np.linspace(*SHADES, MAX_THINGS))
    for shade in shades[: rng.integers(1, MAX_THINGS, endpoint=True)]:
        name = str(rng.choice(list(THING_HUES)))
        for _ in range(PLACEMENTS):
            cover, outline, area = _draw_thing(rng, name, size)
            placed = np.where(cover >= 0.5, len(names), layer)
            visible = np.bincount(placed.ravel(), minlength=len(names) + 1)[first:]
            needed = MIN_VISIBLE * np.array([*areas, area])
            if (visible >= needed.clip(min=MIN_PIXELS)).all():
                colour = _thing_colour(rng, name, float(shade), outline)
                picture += cover[..., None] * (colour - picture)
                layer[...] = placed
                names.append(name)
                areas.append(area)
                break
    return range(first, len(names))


def _draw_thing(
    rng: np.random.Generator, name: str, size: tuple[int, int]
) -> tuple[Array, Array, int]:
    """A thing at a random place: cover [H, W] and outline [H, W] in 0..1, area in pixels.

    The area is the whole thing's, also where it leaves the picture.
    """
    height, width = size
    scale = SUPERSAMPLING
    radius = 0.5 * rng.uniform(*DIAMETER) * min(size)
    angle = rng.uniform(0, 2 * np.pi)
    center = rng.uniform(0.08, 0.92, 2) * (width, height)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    fill = Image.new("L", (width * scale, height * scale))
    line = Image.new("L", fill.size)
    line_width = max(2, round(0.14 * radius * scale))
    area = 0.0
    for hole, contour in enumerate(CONTOURS[name]):
        points = [tuple(point) for point in ((contour @ turn) * radius + center) * scale]
        ImageDraw.Draw(fill).polygon(points, fill=0 if hole else 255)
        ImageDraw.Draw(line).line([*points, points[0], points[1]], 255, line_width, "curve")
        area += (-1 if hole else 1) * _polygon_area(contour) * radius**2
    return _downsampled(fill), _downsampled(line), round(area)


def _thing_colour(rng: np.random.Generator, name: str, shade: float, outline: Array) -> Array:
    """Colour [H, W, 3] of a thing: its hue, a soft gradient, a darker outline."""
    hue = THING_HUES[name] + rng.uniform(-HUE_SPREAD, HUE_SPREAD)
    _, across = _rotated_grid(outline.shape, rng.uniform(0, 2 * np.pi))
    value = shade * (1 - 0.55 * outline) + 0.25 * across / max(outline.shape)
    return _shade(hue, rng.uniform(0.6, 0.95), value)


def _light(rng: np.random.Generator, picture: Array) -> None:
    """Contrast, brightness, a light gradient and noise, in place; the result is in 0..1."""
    size = picture.shape[:2]
    _, across = _rotated_grid(size, rng.uniform(0, 2 * np.pi))
    gradient = 1 + rng.uniform(0, 0.4) * across / max(size)
    picture -= 0.5
    picture *= rng.uniform(0.75, 1.15)
    picture += 0.5 + rng.uniform(-0.08, 0.08)
    picture *= gradient[..., None]
    picture += rng.uniform(0.005, 0.04) * rng.standard_normal(picture.shape, np.float32)
    picture.clip(0, 1, out=picture)


def _blob(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A random ellipse [H, W] that covers a few per cent of the picture."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    center = rng.uniform(0.2, 0.8, 2) * size
    radii = rng.uniform(0.08, 0.18, 2) * size
    return ((rows - center[0]) / radii[0]) ** 2 + ((columns - center[1]) / radii[1]) ** 2 <= 1


def _segment_info(mask: NDArray[np.bool_], id: int, name: str, iscrowd: int) -> SegmentInfo:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "id": id,
        "category_id": CATEGORY_ID[name],
        "area": int(mask.sum()),
        "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
        "iscrowd": iscrowd,
    }


def _rotated_grid(size: tuple[int, int], angle: float) -> tuple[Array, Array]:
    """Coordinates [H, W] in pixels from the middle, along and across a direction."""
    y, x = np.ogrid[: size[0], : size[1]]
    x, y = x - size[1] / 2, y - size[0] / 2
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> Array:
    """Noise [H, W] of about -1..1 with `cells` bumps a side."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _shade(hue: float, saturation: float | Array, value: Array) -> Array:
    """RGB [H, W, 3] of one hue, with saturation and value that may vary by pixel."""
    pure = np.array(colorsys.hsv_to_rgb(hue % 1.0, 1.0, 1.0), np.float32)
    grey = np.asarray(1 - np.asarray(saturation, np.float32))[..., None]
    return ((grey + (1 - grey) * pure) * value[..., None]).clip(0, 1).astype(np.float32)


def _polygon_area(points: Array) -> float:
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _downsampled(mask: Image.Image) -> Array:
    return np.asarray(mask.reduce(SUPERSAMPLING), np.float32) / 255


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a training and a validation split."""
    parser = argparse.ArgumentParser(description="Write generated scenes in COCO panoptic format.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--train", type=int, default=2000, help="number of training scenes")
    parser.add_argument("--val", type=int, default=200, help="number of validation scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=128, help="typical side in pixels")
    options = parser.parse_args(arguments)
    for split, count in (("train", options.train), ("val", options.val)):
        json_path = write_scenes(
            options.root,
            count=count,
            seed=options.seed,
            size=options.size,
            split=split,
            progress=True,
        )
        print(json_path)


if __name__ == "__main__":
    main()
