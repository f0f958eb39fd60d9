"""Generated scenes: reproducible, complete, consistent with what is written to disk."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from maskformer_fast.data.coco_panoptic import CocoPanoptic
from maskformer_fast.data.shapes import (
    CATEGORIES,
    CATEGORY_ID,
    CONTOURS,
    MIN_PIXELS,
    STUFF_HUES,
    THING_HUES,
    scene,
    write_scenes,
)

STUFF_IDS = {CATEGORY_ID[name] for name in STUFF_HUES}


@pytest.fixture(scope="module")
def scenes():
    return [scene(np.random.default_rng([7, index]), (96, 112)) for index in range(120)]


def test_same_generator_state_gives_the_same_scene():
    first = scene(np.random.default_rng([3, 5]), (64, 80))
    second = scene(np.random.default_rng([3, 5]), (64, 80))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert first[2] == second[2]


def test_layout_of_a_scene():
    image, id_map, segments_info = scene(np.random.default_rng(0), (50, 70))
    assert (image.shape, image.dtype) == ((50, 70, 3), np.uint8)
    assert (id_map.shape, id_map.dtype) == ((50, 70), np.int32)
    json.dumps(segments_info)  # plain Python numbers


def test_every_class_occurs(scenes):
    count = Counter(s["category_id"] for _, _, info in scenes for s in info)
    assert set(count) == {category["id"] for category in CATEGORIES}
    assert min(count.values()) >= 20
    assert set(CONTOURS) == set(THING_HUES)


def test_one_to_five_things_on_one_to_three_stuff_regions(scenes):
    for _, _, info in scenes:
        classes = [s["category_id"] for s in info]
        stuff = [c for c in classes if c in STUFF_IDS]
        assert 1 <= len(stuff) <= 3 and len(set(stuff)) == len(stuff)
        assert 1 <= len(classes) - len(stuff) <= 5


def test_areas_and_boxes_are_those_of_the_map(scenes):
    for _, id_map, info in scenes:
        assert {s["id"] for s in info} == set(np.unique(id_map)) - {0}
        for segment in info:
            rows, columns = np.nonzero(id_map == segment["id"])
            x, y = columns.min(), rows.min()
            assert segment["area"] == len(rows)
            assert segment["bbox"] == [x, y, columns.max() - x + 1, rows.max() - y + 1]


def test_things_stay_visible(scenes):
    for _, id_map, info in scenes:
        if (id_map != 0).all():  # a void patch may cover more
            things = [s for s in info if s["category_id"] not in STUFF_IDS]
            assert all(thing["area"] >= MIN_PIXELS for thing in things)


def test_things_hide_one_another(scenes):
    """Boxes of things overlap in many scenes, pixels never do (there is one map)."""
    overlaps = 0
    for _, _, info in scenes:
        boxes = [s["bbox"] for s in info if s["category_id"] not in STUFF_IDS]
        overlaps += any(
            a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
            for i, a in enumerate(boxes)
            for b in boxes[:i]
        )
    assert overlaps > len(scenes) / 4


def test_a_small_share_has_void_or_crowd(scenes):
    special = sum(
        bool((id_map == 0).any() or any(s["iscrowd"] for s in info)) for _, id_map, info in scenes
    )
    assert 1 <= special <= 0.15 * len(scenes)


def test_files_match_the_json_and_do_not_depend_on_the_count(tmp_path):
    short = write_scenes(tmp_path / "a", count=2, seed=4, size=64)
    long = write_scenes(tmp_path / "b", count=3, seed=4, size=64)
    assert short == tmp_path / "a" / "annotations" / "panoptic_train.json"
    few, many = json.loads(short.read_text()), json.loads(long.read_text())
    assert few["annotations"] == many["annotations"][:2]
    for record in few["images"]:
        for folder in ("train", "panoptic_train"):
            path = tmp_path / "a" / folder / record["file_name"]
            assert path.read_bytes() == (tmp_path / "b" / folder / record["file_name"]).read_bytes()
            assert Image.open(path).size == (record["width"], record["height"])
            assert all(48 <= side <= 80 for side in (record["width"], record["height"]))


def test_splits_of_one_seed_differ(tmp_path):
    paths = [write_scenes(tmp_path, count=1, size=32, split=split) for split in ("train", "val")]
    first, second = (json.loads(path.read_text())["annotations"] for path in paths)
    assert first != second


def test_sizes_do_not_vary_when_asked(tmp_path):
    path = write_scenes(tmp_path, count=3, size=40, size_variation=0)
    assert {(i["height"], i["width"]) for i in json.loads(path.read_text())["images"]} == {(40, 40)}


@pytest.mark.parametrize(
    ("options", "name"),
    [({"count": 0}, "count"), ({"count": 1, "size": 16}, "size"),
     ({"count": 1, "size_variation": 1.0}, "size_variation")],
)  # fmt: skip
def test_bad_options_are_named(tmp_path, options, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        write_scenes(tmp_path, **options)


def test_module_writes_both_splits(tmp_path):
    command = [sys.executable, "-m", "maskformer_fast.data.shapes", str(tmp_path)]
    options = ["--train", "2", "--val", "1", "--size", "48"]
    done = subprocess.run(command + options, capture_output=True, text=True, check=True)
    lengths = []
    for line, split in zip(done.stdout.splitlines(), ("train", "val"), strict=True):
        lengths.append(len(CocoPanoptic(line, tmp_path / split, tmp_path / f"panoptic_{split}")))
    assert lengths == [2, 1]
    assert done.stderr == ""
