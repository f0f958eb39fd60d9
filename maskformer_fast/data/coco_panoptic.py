"""CocoPanoptic: a data set in COCO panoptic format.

The format: a JSON with `images`, `annotations` and `categories`, and one RGB PNG per image whose
pixels are segment ids, id = R + 256 G + 65536 B. Id 0 and `iscrowd` segments are void.
"""

import json
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from maskformer_fast.data.files import existing_folder, file_under, read_id_map
from maskformer_fast.data.sample import PanopticSample
from maskformer_fast.images import read_rgb

Record = dict[str, Any]

MAX_ID = 2**24 - 1
REQUIRED: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"image_id": int, "file_name": str, "segments_info": list},
    "categories": {"id": int, "name": str, "isthing": int},
    "segments_info": {"id": int, "category_id": int},
}


class CocoPanoptic(Dataset[PanopticSample]):
    """Images with their segments; item i is annotation i of the JSON.

    annotations  path of the JSON
    images       folder of the pictures
    panoptic     folder of the PNG id maps
    transform    applied to every sample

    `categories` are the JSON's, in its order, which is that of the class indices 0..K-1;
    `id2label` and `thing_classes` speak of class indices. A JSON that breaks the format is a
    ValueError here; a file that is absent or does not fit the JSON is a FileNotFoundError or a
    ValueError when its sample is read. Each error names the file.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        panoptic: str | Path,
        *,
        transform: Callable[[PanopticSample], PanopticSample] | None = None,
    ) -> None:
        self.path = Path(annotations)
        self.image_folder = existing_folder(images)
        self.panoptic_folder = existing_folder(panoptic)
        self.transform = transform
        content = _read_json(self.path)
        self.categories: list[Record] = content["categories"]
        self.annotations: list[Record] = content["annotations"]
        self.images: dict[int, Record] = {image["id"]: image for image in content["images"]}
        self.class_of_category = {c["id"]: index for index, c in enumerate(self.categories)}
        self._check(content)

    @property
    def id2label(self) -> dict[int, str]:
        """Name of each class."""
        return {index: category["name"] for index, category in enumerate(self.categories)}

    @property
    def thing_classes(self) -> list[int]:
        """Classes that are things."""
        return [index for index, category in enumerate(self.categories) if category["isthing"]]

    @classmethod
    def from_split(cls, root: str | Path, split: str, **options: Any) -> "CocoPanoptic":
        """The files of one split where COCO's archives put them under `root`:
        annotations/panoptic_{split}.json, {split}/ and panoptic_{split}/."""
        root = Path(root)
        annotations = root / "annotations" / f"panoptic_{split}.json"
        return cls(annotations, root / split, root / f"panoptic_{split}", **options)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> PanopticSample:
        annotation = self.annotations[index]
        image = self.images[annotation["image_id"]]
        pixels = read_rgb(file_under(self.image_folder, image["file_name"]), _size(image))
        id_map, segments_info = self.ground_truth(index)
        targets = [segment for segment in segments_info if not segment.get("iscrowd", 0)]
        sample = PanopticSample(
            image=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
            segments=torch.from_numpy(_target_of_pixel(id_map, targets)),
            labels=torch.tensor(
                [self.class_of_category[target["category_id"]] for target in targets],
                dtype=torch.int64,
            ),
            image_id=image["id"],
            file_name=image["file_name"],
        )
        return self.transform(sample) if self.transform else sample

    def ground_truth(self, index: int) -> tuple[NDArray[np.int32], list[Record]]:
        """Id map [H, W] and `segments_info` of item `index` as stored, crowds included.

        Segments without a pixel are left out (COCO has a few); an id in the map that
        `segments_info` does not list is a ValueError.
        """
        annotation = self.annotations[index]
        path = file_under(self.panoptic_folder, annotation["file_name"])
        id_map = read_id_map(path, _size(self.images[annotation["image_id"]]))
        present = set(np.unique(id_map).tolist())
        unknown = present - {segment["id"] for segment in annotation["segments_info"]} - {0}
        if unknown:
            raise ValueError(
                f"{path}: ids {sorted(unknown)[:5]} are not in the segments_info of {self.path}"
            )
        return id_map, [s for s in annotation["segments_info"] if s["id"] in present]

    def _check(self, content: dict[str, list[Record]]) -> None:
        """Unique ids, and no reference to an image or a category that is not there."""
        _check_unique(f"{self.path}: category id", (c["id"] for c in self.categories))
        _check_unique(f"{self.path}: image id", (image["id"] for image in content["images"]))
        _check_unique(f"{self.path}: annotated image", (a["image_id"] for a in self.annotations))
        for annotation in self.annotations:
            where = f"{self.path}: {annotation['file_name']}"
            if annotation["image_id"] not in self.images:
                raise ValueError(f"{where}: unknown image_id {annotation['image_id']}")
            _check_records(where, "segments_info", annotation["segments_info"])
            _check_unique(f"{where}: segment id", (s["id"] for s in annotation["segments_info"]))
            for segment in annotation["segments_info"]:
                if segment["category_id"] not in self.class_of_category:
                    raise ValueError(f"{where}: unknown category_id {segment['category_id']}")
                if not 0 < segment["id"] <= MAX_ID:
                    raise ValueError(f"{where}: segment id {segment['id']} is not in 1..{MAX_ID}")


def _read_json(path: Path) -> dict[str, list[Record]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    for key in ("images", "annotations", "categories"):
        _check_records(str(path), key, content.get(key))
    return content


def _check_records(where: str, key: str, records: Any) -> None:
    """`records` is a list of objects with the fields that `key` requires."""
    if not isinstance(records, list):
        raise ValueError(f"{where}: expected a list under {key!r}, got {type(records).__name__}")
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"{where}: {key}[{index}]: expected an object, got {record!r}")
        for field, kind in REQUIRED[key].items():
            if not isinstance(record.get(field), kind):
                raise ValueError(
                    f"{where}: {key}[{index}][{field!r}]: expected {kind.__name__}, "
                    f"got {record.get(field)!r}"
                )


def _check_unique(what: str, values: Iterable[Hashable]) -> None:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what} {value!r} occurs more than once")
        seen.add(value)


def _size(image: Record) -> tuple[int, int]:
    return image["height"], image["width"]


def _target_of_pixel(id_map: NDArray[np.int32], targets: list[Record]) -> NDArray[np.int16]:
    """Index [H, W] of the target whose id a pixel has, -1 where there is none."""
    ids = np.array([0] + [target["id"] for target in targets], np.int32)
    order = np.argsort(ids)
    place = np.searchsorted(ids[order], id_map).clip(max=len(ids) - 1)
    entry = order[place]  # [H, W], index into ids
    return np.where(ids[entry] == id_map, entry - 1, -1).astype(np.int16)
