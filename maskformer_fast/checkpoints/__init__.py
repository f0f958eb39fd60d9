"""Published weights -> a configuration and tensors under this package's names.

Formats: this package's own and transformers' (a folder or hub repository with config.json), and
detectron2's .pkl and .pth files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from maskformer_fast.checkpoints.detectron2_format import from_detectron2
from maskformer_fast.checkpoints.files import (
    CONFIG,
    PROCESSOR,
    WEIGHTS,
    find_folder,
    only_tensors,
    read_json,
    read_tensors,
    read_torch,
)
from maskformer_fast.checkpoints.pickle_reader import read_pickle
from maskformer_fast.checkpoints.report import load_state
from maskformer_fast.checkpoints.transformers_format import from_transformers, imagenet_backbone
from maskformer_fast.config import MaskFormerConfig

__all__ = [
    "from_detectron2",
    "from_transformers",
    "load",
    "load_backbone",
    "load_state",
    "read_detectron2",
    "read_pickle",
    "save",
]


def load(path_or_hub_id: str | Path, **hub: Any) -> tuple[MaskFormerConfig, dict[str, Tensor]]:
    """A MaskFormer's configuration and tensors, from a folder or else the hub.

    `hub`: keyword arguments of huggingface_hub.snapshot_download (revision, cache_dir, token, ...).
    Errors: ValueError naming the file and what is wrong with it.
    """
    folder = find_folder(path_or_hub_id, **hub)
    config = read_json(folder / CONFIG)
    model_type = config.get("model_type")
    if model_type == "maskformer_fast":
        return MaskFormerConfig.from_dict(config), read_tensors(folder)
    if model_type == "maskformer":
        processor = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else None
        return from_transformers(config, read_tensors(folder), str(folder), processor)
    raise ValueError(
        f"{folder / CONFIG}: model_type must be 'maskformer_fast' or 'maskformer' "
        f"(transformers), got {model_type!r}"
    )


def load_backbone(
    path_or_hub_id: str | Path, **hub: Any
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """ImageNet weights of transformers' Swin or ResNet, from a folder or else the hub:
    the backbone's name, its keyword arguments and its tensors."""
    folder = find_folder(path_or_hub_id, **hub)
    return imagenet_backbone(read_json(folder / CONFIG), read_tensors(folder), str(folder))


def read_detectron2(
    file: str | Path, **overrides: Any
) -> tuple[MaskFormerConfig, dict[str, Tensor]]:
    """A MaskFormer's configuration and tensors, from a detectron2 .pkl or .pth file.

    `overrides`: fields of MaskFormerConfig that tensors do not show (`id2label`, ...).
    Errors: ValueError naming the file and what is wrong with it.
    """
    path = Path(file)
    readers = {".pkl": read_pickle, ".pth": read_torch}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a .pkl or .pth file")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    content = readers[path.suffix](path)
    if isinstance(content, dict):
        content = content.get("model", content)
    return from_detectron2(only_tensors(content, path), str(path), **overrides)


def save(folder: Path, config: MaskFormerConfig, tensors: Mapping[str, Tensor]) -> None:
    """Writes config.json and model.safetensors of our format."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    config.save(folder / CONFIG)
