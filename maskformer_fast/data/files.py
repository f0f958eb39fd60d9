"""Files of a data set: paths that stay inside it, and label maps, with errors that name the file.

The names of the files come from other files (a JSON, a list), so they are not trusted: nothing
outside the given folder is opened, and nothing is decoded before its header was checked.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskformer_fast.images import read_pixels

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_GREY, PNG_RGB, PNG_PALETTE = 0, 2, 3


def existing_folder(path: str | Path) -> Path:
    """The resolved folder; FileNotFoundError where there is none."""
    folder = Path(path).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    return folder


def file_under(root: Path, name: str) -> Path:
    """Path of file `name` in the resolved folder `root`.

    Absolute names, `..` and links that lead out of `root` are a ValueError, an absent file is a
    FileNotFoundError.
    """
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise ValueError(f"{name!r}: expected a file name inside {root}, without '..'")
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"{name!r}: leads outside {root}, to {path}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def read_id_map(path: Path, size: tuple[int, int]) -> NDArray[np.int32]:
    """Segment ids [H, W] of a COCO panoptic PNG: id = R + 256 G + 65536 B."""
    depth, colour = _png_header(path)
    if (depth, colour) != (8, PNG_RGB):
        raise ValueError(
            f"{path}: expected an RGB PNG with 8 bits a channel, "
            f"got colour type {colour} with {depth} bits"
        )
    rgb = read_pixels(path, size).astype(np.int32)  # [H, W, 3]
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def id_map_to_rgb(id_map: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The pixels [H, W, 3] from which `read_id_map` reads `id_map` [H, W]."""
    return np.stack([id_map >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def read_label_map(path: Path, size: tuple[int, int]) -> NDArray[np.int32]:
    """Labels [H, W] of a semantic PNG: grey of 8 or 16 bits, or palette indices."""
    depth, colour = _png_header(path)
    if not (colour == PNG_PALETTE or (colour == PNG_GREY and depth in (8, 16))):
        raise ValueError(
            f"{path}: expected a palette PNG or a grey PNG with 8 or 16 bits, "
            f"got colour type {colour} with {depth} bits"
        )
    return read_pixels(path, size).astype(np.int32)


def _png_header(path: Path) -> tuple[int, int]:
    """(bits a channel, colour type) from the file itself: Pillow rounds 16 bits of RGB to 8."""
    with path.open("rb") as file:
        head = file.read(26)
    if len(head) < 26 or not head.startswith(PNG_SIGNATURE) or head[12:16] != b"IHDR":
        raise ValueError(f"{path}: not a PNG file")
    return head[24], head[25]
