"""Pictures of every kind become RGB of 8 bits, damaged ones a ValueError; the model's input."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_fast import MaskFormerConfig, images
from maskformer_fast.data.sample import PanopticSample
from maskformer_fast.data.transforms import ResizeShortSide, collate
from maskformer_fast.images import pictures_in, preprocess, read_rgb, rgb_array

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = np.array([[RED, GREEN, BLUE], [WHITE, WHITE, WHITE]], np.uint8)  # [2, 3, 3]
STORED = {  # how a picture with this orientation lies in its file
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def pixel_of(tmp_path, picture, suffix="png"):
    """The one colour of a picture that was saved and read."""
    path = tmp_path / f"a.{suffix}"
    picture.save(path)
    pixels = read_rgb(path)
    assert pixels.dtype == np.uint8 and pixels.shape == (picture.height, picture.width, 3)
    assert (pixels == pixels[0, 0]).all()
    return tuple(pixels[0, 0].tolist())


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tif", "webp"])
def test_formats(tmp_path, suffix):
    colour = pixel_of(tmp_path, Image.new("RGB", (3, 2), RED), suffix)
    np.testing.assert_allclose(colour, RED, atol=2 if suffix in ("jpg", "webp") else 0)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 70, (70, 70, 70)),
        ("LA", (70, 255), (70, 70, 70)),
        ("LA", (70, 0), WHITE),
        ("RGBA", (*RED, 255), RED),
        ("RGBA", (*RED, 0), WHITE),
        ("RGBA", (*RED, 51), (255, 204, 204)),
        ("I;16", 0, (0, 0, 0)),
        ("I;16", 65535, WHITE),
        ("I;16", 100 * 257 + 128, (100, 100, 100)),
        ("I;16", 100 * 257 + 129, (101, 101, 101)),
    ],
)
@pytest.mark.parametrize("size", [(3, 2), (1, 1)])
def test_modes(tmp_path, size, mode, colour, expected):
    assert pixel_of(tmp_path, Image.new(mode, size, colour)) == expected


def test_palette(tmp_path):
    picture = Image.new("P", (3, 2), 1)
    picture.putpalette([*GREEN, *BLUE])
    assert pixel_of(tmp_path, picture) == BLUE
    picture.info["transparency"] = 1
    assert pixel_of(tmp_path, picture) == WHITE


def test_cmyk(tmp_path):
    colour = pixel_of(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpg")
    np.testing.assert_allclose(colour, RED, atol=2)


def test_grey_without_a_range_is_refused(tmp_path):
    for name, mode, value in (("f.tif", "F", 0.5), ("i.tif", "I", 70000), ("n.tif", "I", -1)):
        Image.new(mode, (3, 2), value).save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: .*expected grey values 0\.\.65535"):
            read_rgb(tmp_path / name)


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](UPRIGHT))
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png", size=(2, 3)), UPRIGHT)
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(rgb_array(picture), UPRIGHT)


def png_claiming(width, height):
    """A PNG of 1 bit grey whose header promises a size that its data do not hold."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return images_signature() + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


def images_signature():
    buffer = io.BytesIO()
    Image.new("1", (1, 1)).save(buffer, "png")
    return buffer.getvalue()[:8]


@pytest.mark.parametrize("side", [8200, 60_000, 2_000_000])
def test_decompression_bomb_is_refused(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_claiming(side, side))
    with pytest.raises(ValueError, match=r"bomb\.png: not a readable image \(.*pixels"):
        read_rgb(tmp_path / "bomb.png")


def test_limit_of_pixels(tmp_path, monkeypatch):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 6)
    read_rgb(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 5)
    with pytest.raises(ValueError, match=r"a\.png: .*2 x 3 pixels, expected at most 5"):
        read_rgb(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["gif", "jpg", "png", "tif", "webp"])
def test_damaged_files_are_read_or_refused(tmp_path, suffix):
    """Cut anywhere, or with bytes changed: pixels or a ValueError that names the file."""
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    refusals = []
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(whole) + 1)])
        try:
            read_rgb(path)
        except ValueError as error:
            refusals.append(str(error))
    assert refusals
    assert all(text.startswith(f"{path}: not a readable image (") for text in refusals)


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
        read_rgb(tmp_path / "a.png")


def test_pictures_in_a_folder(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "c.png").mkdir()
    assert [path.name for path in pictures_in(tmp_path)] == ["a.jpg", "b.PNG"]
    with pytest.raises(FileNotFoundError, match=r"c\.png: no pictures"):
        pictures_in(tmp_path / "c.png")


def test_preprocess_is_what_training_does():
    config = MaskFormerConfig(
        short_side=40, long_side=70, size_divisor=16, image_mean=[0.5] * 3, image_std=[0.2] * 3
    )
    generator = torch.Generator().manual_seed(0)
    sizes = [(20, 30), (90, 60), (10, 100)]
    pictures = [
        torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes
    ]
    resize = ResizeShortSide(config.short_side, config.long_side)
    samples = [
        resize(PanopticSample(picture, torch.zeros(size).short(), torch.zeros(1).long(), 0, ""))
        for picture, size in zip(pictures, sizes, strict=True)
    ]
    batch = collate(samples, mean=config.image_mean, std=config.image_std, size_divisor=16)

    arrays = [picture.permute(1, 2, 0).numpy() for picture in pictures]
    pixel_values, pixel_mask, found = preprocess([Image.fromarray(arrays[0]), *arrays[1:]], config)
    assert found == sizes
    assert pixel_values.shape == (3, 3, 64, 80)
    extents = [(mask[:, 0].sum().item(), mask[0].sum().item()) for mask in pixel_mask]
    assert extents == [(40, 60), (60, 40), (7, 70)]
    assert torch.equal(pixel_values, batch["pixel_values"])
    assert torch.equal(pixel_mask, batch["pixel_mask"])
    assert not pixel_values[~pixel_mask[:, None].expand_as(pixel_values)].any()


def test_preprocess_of_one_pixel():
    config = MaskFormerConfig(short_side=64)
    pixel_values, pixel_mask, sizes = preprocess([np.full((1, 1, 3), 255, np.uint8)], config)
    assert pixel_values.shape == (1, 3, 64, 64) and pixel_mask.all() and sizes == [(1, 1)]
    torch.testing.assert_close(pixel_values[0, 0], torch.full((64, 64), (1 - 0.485) / 0.229))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "image: expected uint8, got float32"),
        (
            np.zeros((4, 4), np.uint8),
            ValueError,
            r"image: expected shape \[H, W, 3\], got \(4, 4\)",
        ),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"image: expected shape .*\(0, 4, 3\)"),
    ],
)
def test_preprocess_refuses(image, error, message):
    with pytest.raises(error, match=message):
        preprocess([image], MaskFormerConfig())


def test_preprocess_of_nothing():
    with pytest.raises(ValueError, match="images: expected at least one, got none"):
        preprocess([], MaskFormerConfig())
