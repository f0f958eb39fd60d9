import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_fast.overlay import MIN_SIDE, overlay, palette

NAMES = {0: "sky", 1: "person"}
SEGMENTS = [
    {"id": 3, "label_id": 1, "score": 0.91},
    {"id": 7, "label_id": 1, "score": 0.62},
    {"id": 8, "label_id": 0, "score": 0.99},
]


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.fixture
def ids():
    segmentation = np.zeros((60, 80), np.int32)
    segmentation[:30, :40], segmentation[:30, 40:], segmentation[30:, :40] = 3, 7, 8
    return segmentation


def test_colours_are_stable_and_distinct():
    assert np.array_equal(palette(20), palette(150)[:20])
    assert len(np.unique(palette(150), axis=0)) == 150
    distance = np.abs(palette(20)[:, None].astype(int) - palette(20)).sum(-1)
    assert distance[~np.eye(20, dtype=bool)].min() > 64
    assert palette(0).shape == (0, 3)
    with pytest.raises(ValueError, match=r"n: .*-1"):
        palette(-1)


def test_small_pictures_are_enlarged_and_have_a_legend_below(photo, ids):
    picture = overlay(photo, ids, SEGMENTS, NAMES)
    assert picture.mode == "RGB"
    assert picture.width == 80 * 6 >= MIN_SIDE
    assert picture.height > 60 * 6
    legend = np.asarray(picture)[60 * 6 :]
    assert (legend == 20).all(-1).any()  # ink
    for colour in (palette(2)[0], palette(2)[1]):
        assert (legend == colour).all(-1).any()  # swatches


def test_segments_are_tinted_and_void_is_not(photo, ids):
    flat = np.full_like(photo, 100)
    picture = np.asarray(overlay(flat, ids, SEGMENTS, NAMES, alpha=1.0))
    sky = palette(1)[0]
    assert (picture[45 * 6, 20 * 6] == sky).all()
    assert (picture[45 * 6, 60 * 6] == 100).all()
    persons = picture[15 * 6, 20 * 6], picture[15 * 6, 60 * 6]
    assert (persons[0] == palette(2)[1]).all()
    assert (persons[0] != persons[1]).any()  # another shade of the same class
    assert (picture[15 * 6, 40 * 6] == 255).all()  # the boundary


def test_alpha_0_shows_the_photograph_between_the_boundaries(ids):
    flat = np.full((60, 80, 3), (10, 200, 90), np.uint8)
    picture = np.asarray(overlay(flat, ids, SEGMENTS, alpha=0.0))
    assert (picture[15 * 6, 20 * 6] == flat[0, 0]).all()


def test_without_segments_the_map_holds_classes(photo):
    classes = torch.zeros(60, 80, dtype=torch.int64)
    classes[30:] = 1
    picture = overlay(photo, classes, None, NAMES)
    as_segments = [{"id": c, "label_id": c} for c in (0, 1)]
    assert np.array_equal(picture, overlay(photo, classes, as_segments, NAMES))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 3)])
def test_every_size_gives_a_picture(size):
    photo = np.zeros((*size, 3), np.uint8)
    for segments in ([{"id": 1, "label_id": 5, "score": 1.0}], [], None):
        picture = overlay(photo, np.ones(size, np.uint8), segments)
        assert picture.width >= size[1]
        assert picture.height >= size[0]


def test_many_long_names_fit_into_the_picture(photo, ids):
    segments = [{"id": i, "label_id": i, "score": 0.5} for i in range(1, 60)]
    names = dict.fromkeys(range(60), "a name that has no end at all " * 3)
    assert overlay(photo, ids, segments, names).width == 480


def test_pil_images_of_every_mode_are_taken(photo, ids):
    expected = np.asarray(overlay(photo, ids, SEGMENTS))
    assert np.array_equal(overlay(Image.fromarray(photo), ids, SEGMENTS), expected)
    for mode in ("L", "RGBA", "P", "1"):
        assert overlay(Image.fromarray(photo).convert(mode), ids, SEGMENTS).mode == "RGB"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": np.zeros((4, 5, 3))}, TypeError, "image: .*float64"),
        ({"image": np.zeros((4, 5), np.uint8)}, ValueError, r"image: .*\(4, 5\)"),
        ({"image": np.zeros((0, 5, 3), np.uint8)}, ValueError, "image: "),
        ({"segmentation": np.zeros((4, 6), int)}, ValueError, r"segmentation: .*\(4, 6\)"),
        ({"segmentation": np.zeros((4, 5))}, TypeError, "segmentation: .*float64"),
        ({"alpha": 1.5}, ValueError, "alpha: .*1.5"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {
        "image": np.zeros((4, 5, 3), np.uint8),
        "segmentation": np.zeros((4, 5), int),
        **change,
    }
    with pytest.raises(error, match=message):
        overlay(**arguments)
