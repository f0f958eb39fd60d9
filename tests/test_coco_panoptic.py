"""Data sets on disk: what is read, and what each broken file is told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskformer_fast.data import CocoPanoptic, SemanticPng
from maskformer_fast.data.shapes import CATEGORIES, write_scenes

ID_MAP = np.array([[70000, 70000, 0], [300, 300, 9]], np.int32)  # 9 is a crowd
CONTENT = {
    "images": [{"id": 5, "file_name": "a.jpg", "height": 2, "width": 3}],
    "annotations": [
        {
            "image_id": 5,
            "file_name": "a.png",
            "segments_info": [
                {"id": 300, "category_id": 12},
                {"id": 4, "category_id": 7},  # no pixel
                {"id": 70000, "category_id": 7, "iscrowd": 0},
                {"id": 9, "category_id": 7, "iscrowd": 1},
            ],
        }
    ],
    "categories": [
        {"id": 7, "name": "person", "isthing": 1},
        {"id": 12, "name": "wall", "isthing": 0},
        {"id": 3, "name": "car", "isthing": 1},
    ],
}


class Folder:
    """A data set of one image whose files a test may break."""

    def __init__(self, root: Path) -> None:
        self.json, self.images, self.panoptic = root / "a.json", root / "images", root / "maps"
        self.content = json.loads(json.dumps(CONTENT))
        self.images.mkdir()
        self.panoptic.mkdir()
        Image.new("RGB", (3, 2), (10, 20, 30)).save(self.images / "a.jpg")
        rgb = np.stack([ID_MAP % 256, ID_MAP // 256 % 256, ID_MAP // 65536], -1)
        Image.fromarray(rgb.astype(np.uint8)).save(self.panoptic / "a.png")

    @property
    def segments_info(self) -> list:
        return self.content["annotations"][0]["segments_info"]

    def open(self, **options) -> CocoPanoptic:
        self.json.write_text(json.dumps(self.content))
        return CocoPanoptic(self.json, self.images, self.panoptic, **options)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def write_png_16_bit(path: Path, shape: tuple[int, ...]) -> None:
    """A 16-bit grey PNG, or an 8-bit RGB one whose header claims 16 bits."""
    if len(shape) == 2:
        Image.fromarray(np.full(shape, 700, np.uint16)).save(path)
        return
    Image.new("RGB", (shape[1], shape[0])).save(path)
    content = bytearray(path.read_bytes())
    content[24] = 16
    path.write_bytes(content)


def test_sample_by_hand(folder):
    dataset = folder.open()
    sample = dataset[0]
    assert len(dataset) == 1
    assert (sample.image.shape, sample.image.dtype) == ((3, 2, 3), torch.uint8)
    assert sample.segments.tolist() == [[1, 1, -1], [0, 0, -1]]
    assert sample.segments.dtype == torch.int16
    assert sample.labels.tolist() == [1, 0]
    assert (sample.image_id, sample.file_name) == (5, "a.jpg")


def test_classes_are_numbered_in_the_order_of_the_json(folder):
    dataset = folder.open()
    assert dataset.id2label == {0: "person", 1: "wall", 2: "car"}
    assert dataset.thing_classes == [0, 2]


def test_ground_truth_is_as_stored(folder):
    id_map, segments_info = folder.open().ground_truth(0)
    np.testing.assert_array_equal(id_map, ID_MAP)
    assert [segment["id"] for segment in segments_info] == [300, 70000, 9]


def test_transform_is_applied(folder):
    assert folder.open(transform=lambda sample: sample.file_name)[0] == "a.jpg"


def test_generated_scenes_round_trip(tmp_path):
    path = write_scenes(tmp_path, count=4, size=48)
    dataset = CocoPanoptic(path, tmp_path / "train", tmp_path / "panoptic_train")
    assert dataset.categories == CATEGORIES
    for index, annotation in enumerate(json.loads(path.read_text())["annotations"]):
        sample = dataset[index]
        targets = [s for s in annotation["segments_info"] if not s["iscrowd"]]
        areas = [int((sample.segments == t).sum()) for t in range(len(sample.labels))]
        assert areas == [target["area"] for target in targets]
        assert sample.labels.tolist() == [target["category_id"] - 1 for target in targets]


def test_image_without_segments(folder):
    folder.segments_info.clear()
    Image.new("RGB", (3, 2)).save(folder.panoptic / "a.png")
    sample = folder.open()[0]
    assert sample.labels.shape == (0,)
    assert (sample.segments == -1).all()


# ----- a JSON that breaks the format is refused when it is opened


def test_missing_json_and_folder(folder, tmp_path):
    folder.open()
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        CocoPanoptic(tmp_path / "absent.json", folder.images, folder.panoptic)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        CocoPanoptic(folder.json, tmp_path / "nowhere", folder.panoptic)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[1]", "expected a JSON object, got list"),
        ('{"images": []}', "expected a list under 'annotations', got NoneType"),
        ('{"images": [3]}', r"images\[0\]: expected an object, got 3"),
    ],
)
def test_broken_json(folder, text, message):
    folder.json.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json: {message}"):
        CocoPanoptic(folder.json, folder.images, folder.panoptic)


def duplicate(key):
    return lambda folder: folder.content[key].append(folder.content[key][0])


def segment(**change):
    return lambda folder: folder.segments_info[0].update(change)


BREAKS = {
    "category id 7 occurs more than once": duplicate("categories"),
    "image id 5 occurs more than once": duplicate("images"),
    "annotated image 5 occurs more than once": duplicate("annotations"),
    "segment id 9 occurs more than once": segment(id=9),
    "unknown category_id 99": segment(category_id=99),
    r"segment id 0 is not in 1\.\.16777215": segment(id=0),
    r"segments_info\[0\]\['id'\]: expected int, got '1'": segment(id="1"),
    "unknown image_id 6": lambda folder: folder.content["annotations"][0].update(image_id=6),
    r"images\[0\]\['height'\]: expected int, got None": (
        lambda folder: folder.content["images"][0].pop("height")
    ),
}


@pytest.mark.parametrize("message", BREAKS)
def test_json_against_the_format(folder, message):
    BREAKS[message](folder)
    with pytest.raises(ValueError, match=rf"a\.json: .*{message}"):
        folder.open()


# ----- a file that does not fit the JSON is refused when it is read


def test_missing_files(folder):
    (folder.images / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg: no such file"):
        folder.open()[0]


@pytest.mark.parametrize("name", ["../a.json", "x/../../a.json", "/etc/hostname"])
def test_names_that_leave_the_folder(folder, name):
    folder.content["images"][0]["file_name"] = name
    with pytest.raises(ValueError, match="expected a file name inside"):
        folder.open()[0]


def test_links_that_leave_the_folder(folder, tmp_path):
    (folder.images / "a.jpg").rename(tmp_path / "outside.jpg")
    (folder.images / "a.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(ValueError, match=r"'a\.jpg': leads outside"):
        folder.open()[0]


def test_links_inside_the_folder_are_followed(folder):
    (folder.images / "a.jpg").rename(folder.images / "b.jpg")
    (folder.images / "a.jpg").symlink_to("b.jpg")
    assert len(folder.open()[0].labels) == 2


def test_folder_may_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder.images)
    folder.images = tmp_path / "link"
    assert len(folder.open()[0].labels) == 2


@pytest.mark.parametrize("name", ["images/a.jpg", "maps/a.png"])
def test_truncated_file(tmp_path, name):
    folder = Folder(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=rf"{path.name}: not a readable image"):
        folder.open()[0]


def test_picture_that_is_text(folder):
    (folder.images / "a.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"a\.jpg: not a readable image"):
        folder.open()[0]


def test_map_that_is_no_png(folder):
    Image.new("RGB", (3, 2)).save(folder.panoptic / "a.png", format="JPEG")
    with pytest.raises(ValueError, match=r"a\.png: not a PNG file"):
        folder.open()[0]


@pytest.mark.parametrize("name", ["images/a.jpg", "maps/a.png"])
def test_wrong_size_is_seen_in_the_header(tmp_path, name):
    folder = Folder(tmp_path)
    Image.new("RGB", (4, 2)).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"expected 2 rows x 3 columns, got 2 x 4$"):
        folder.open()[0]


def test_id_that_the_json_does_not_list(folder):
    folder.segments_info.pop(0)
    with pytest.raises(ValueError, match=r"a\.png: ids \[300\] are not in the segments_info of"):
        folder.open()[0]


def test_16_bit_map(folder):
    write_png_16_bit(folder.panoptic / "a.png", (2, 3, 3))
    with pytest.raises(ValueError, match=r"a\.png: expected an RGB PNG with 8 bits .* 16 bits"):
        folder.open()[0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_map_that_is_not_rgb(folder, mode):
    Image.new(mode, (3, 2)).save(folder.panoptic / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: expected an RGB PNG"):
        folder.open()[0]


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_pictures_of_other_modes_become_rgb(folder, mode):
    Image.new(mode, (3, 2)).save(folder.images / "a.jpg")
    assert folder.open()[0].image.shape == (3, 2, 3)


# ----- semantic PNG


@pytest.fixture
def semantic(tmp_path):
    """Folders of pictures and labels with one 2 x 3 picture, without its labels."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "images" / "a.jpg")
    return tmp_path / "images", tmp_path / "labels"


def write_labels(semantic, values, mode=None):
    picture = Image.fromarray(np.array(values))
    if mode == "P":
        picture.putpalette(range(256))
    picture.save(semantic[1] / "a.png")


@pytest.mark.parametrize("mode", [None, "P"])
def test_semantic_targets_are_the_classes_present(semantic, mode):
    write_labels(semantic, np.array([[4, 4, 255], [1, 4, 1]], np.uint8), mode)
    sample = SemanticPng(*semantic, 5)[0]
    assert sample.labels.tolist() == [1, 4]
    assert sample.segments.tolist() == [[1, 1, -1], [0, 1, 0]]


def test_semantic_offset_and_16_bits(semantic):
    write_labels(semantic, np.array([[0, 1, 1], [800, 1, 0]], np.uint16))
    sample = SemanticPng(*semantic, 800, ignore_value=0, label_offset=1)[0]
    assert sample.labels.tolist() == [0, 799]
    assert sample.segments.tolist() == [[-1, 0, 0], [1, 0, -1]]


def test_semantic_all_void(semantic):
    write_labels(semantic, np.full((2, 3), 255, np.uint8))
    assert SemanticPng(*semantic, 5)[0].labels.shape == (0,)


def test_semantic_label_out_of_range(semantic):
    write_labels(semantic, np.array([[4, 7, 255], [1, 4, 1]], np.uint8))
    with pytest.raises(ValueError, match=r"a\.png: expected labels 0\.\.4 or 255, got 7"):
        SemanticPng(*semantic, 5)[0]


def test_semantic_rgb_labels_are_refused(semantic):
    Image.new("RGB", (3, 2)).save(semantic[1] / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: expected a palette PNG or a grey PNG"):
        SemanticPng(*semantic, 5)[0]


def test_semantic_files_that_do_not_fit(semantic):
    dataset = SemanticPng(*semantic, 5)
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        dataset[0]
    write_labels(semantic, np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match="expected 2 rows x 3 columns, got 3 x 3"):
        dataset[0]
    (semantic[0] / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="no pictures"):
        SemanticPng(*semantic, 5)
