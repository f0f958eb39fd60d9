"""A prediction as a picture: coloured segments, their boundaries, and a legend below."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from maskformer_fast.images import rgb_array

MIN_SIDE = 448  # the longer side of a small picture is brought to this at least
MIN_FONT = 14
NAME_LENGTH = 28  # characters of a class name that fit
GOLDEN_RATIO = 0.618034  # steps of it spread hues evenly, however many there are
TONES = ((0.80, 0.95), (0.45, 0.95), (0.95, 0.60))  # saturation, value
SHADES = (1.0, 0.72, 1.22, 0.86, 1.1)  # brightness of the instances of a class, in turn
BOUNDARY = (255, 255, 255)
PAPER, INK = (255, 255, 255), (20, 20, 20)


class _Entry(NamedTuple):
    segment_id: int
    text: str
    colour: tuple[int, int, int]


def palette(n: int) -> np.ndarray:
    """`n` distinct colours [n, 3] uint8 RGB; colour i is the same whatever `n` is."""
    if n < 0:
        raise ValueError(f"n: expected a number of colours >= 0, got {n}")
    colours = [
        colorsys.hsv_to_rgb(i * GOLDEN_RATIO % 1.0, *TONES[i % len(TONES)]) for i in range(n)
    ]
    return (np.array(colours).reshape(n, 3) * 255).round().astype(np.uint8)


def overlay(
    image: np.ndarray | Image.Image,
    segmentation: Any,
    segments_info: Sequence[Mapping[str, Any]] | None = None,
    id2label: Mapping[int, str] | None = None,
    *,
    alpha: float = 0.5,
) -> Image.Image:
    """Draw `segmentation` over `image`, with a legend of name, colour and score.

    image          [H, W, 3] uint8 RGB, or a PIL image
    segmentation   [H, W] integers (array or tensor): with segments_info segment ids, of which
                   those not listed are void; without it classes, of which negative ones are void
    segments_info  dicts with id, label_id and, if known, score, as `post_process` returns them
    id2label       names; a class without one is called "class N"
    alpha          weight of the colours, 0 (photograph only) to 1
    returns        an RGB picture: small images are enlarged by a whole factor, so that the text
                   under them can be read

    Raises TypeError or ValueError naming the argument that is off.
    """
    pixels, ids = _checked(image, segmentation, alpha)
    entries = _entries(ids, segments_info, id2label or {})
    scale = math.ceil(MIN_SIDE / max(ids.shape))
    photo = Image.fromarray(pixels).resize((ids.shape[1] * scale, ids.shape[0] * scale))
    ids = ids.repeat(scale, 0).repeat(scale, 1)
    painted = _paint(np.asarray(photo), ids, entries, alpha)
    return _with_legend(Image.fromarray(painted), entries)


def _checked(
    image: np.ndarray | Image.Image, segmentation: Any, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    pixels = rgb_array(image)
    ids = torch.as_tensor(segmentation).cpu().numpy()
    if ids.dtype.kind not in "iu":
        raise TypeError(f"segmentation: expected integers, got {ids.dtype}")
    if ids.shape != pixels.shape[:2]:
        raise ValueError(f"segmentation: expected shape {pixels.shape[:2]}, got {ids.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number in [0, 1], got {alpha}")
    return pixels, ids.astype(np.int64)


def _entries(
    ids: np.ndarray,
    segments_info: Sequence[Mapping[str, Any]] | None,
    id2label: Mapping[int, str],
) -> list[_Entry]:
    """What is coloured: the segments of the table, or the classes that are in the map."""
    if segments_info is None:
        segments_info = [{"id": c, "label_id": c} for c in np.unique(ids).tolist() if c >= 0]
    labels = [int(segment["label_id"]) for segment in segments_info]
    colours = palette(max(labels, default=-1) + 1)
    entries = []
    for index, (segment, label) in enumerate(zip(segments_info, labels, strict=True)):
        shade = SHADES[labels[:index].count(label) % len(SHADES)]
        red, green, blue = (min(255, round(shade * int(part))) for part in colours[label])
        name = str(id2label.get(label, f"class {label}"))
        if len(name) > NAME_LENGTH:
            name = name[: NAME_LENGTH - 1] + "…"
        score = f" {segment['score']:.2f}" if "score" in segment else ""
        entries.append(_Entry(int(segment["id"]), name + score, (red, green, blue)))
    return entries


def _paint(photo: np.ndarray, ids: np.ndarray, entries: list[_Entry], alpha: float) -> np.ndarray:
    """Tint every entry's segment, then draw the boundaries between segments."""
    painted = photo.copy()
    for entry in entries:
        inside = ids == entry.segment_id
        content = photo[inside]
        grey = content.mean(-1, keepdims=True)  # paler, so that the tint shows as in the legend
        pale = content * (1 - alpha) + grey * alpha
        painted[inside] = (pale * (1 - alpha) + np.array(entry.colour) * alpha).round()
    edge = np.zeros(ids.shape, bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    painted[edge] = BOUNDARY
    return painted


def _with_legend(picture: Image.Image, entries: list[_Entry]) -> Image.Image:
    """The picture over as many columns of swatches and text as its width holds."""
    if not entries:
        return picture
    size = max(MIN_FONT, min(picture.size) // 40)
    font = ImageFont.load_default(size)
    row, swatch, gap = round(size * 1.6), size, size // 2
    widest = max(font.getlength(entry.text) for entry in entries)
    column = int(widest) + swatch + 3 * gap
    columns = max(1, min(len(entries), picture.width // column))
    rows = -(-len(entries) // columns)
    canvas = Image.new(
        "RGB", (max(picture.width, column), picture.height + rows * row + gap), PAPER
    )
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for index, entry in enumerate(entries):
        left = gap + index // rows * column
        top = picture.height + gap + index % rows * row
        draw.rectangle((left, top, left + swatch, top + swatch), fill=entry.colour, outline=INK)
        middle = (left + swatch + gap, top + swatch / 2)
        draw.text(middle, entry.text, fill=INK, font=font, anchor="lm")
    return canvas
