"""Weights on disk and on the hub: which files there are, and tensors out of them."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
WEIGHTS = "model.safetensors"
INDEX = WEIGHTS + ".index.json"
OLD_WEIGHTS = "pytorch_model.bin"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|\w[\w.-]*")


def find_folder(path_or_hub_id: str | Path, **hub: Any) -> Path:
    """The local folder of that name, or else a downloaded copy of the hub's repository.

    `hub`: keyword arguments of huggingface_hub.snapshot_download (revision, cache_dir, token, ...).
    """
    path, name = Path(path_or_hub_id), str(path_or_hub_id)
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(
            f"{path} is a file, expected a folder with {CONFIG} and {WEIGHTS}; "
            f"python -m maskformer_fast convert {path} OUT makes one of a .pkl or .pth file"
        )
    if not HUB_ID.fullmatch(name):
        raise ValueError(f"{name} is neither a folder nor a hub id (OWNER/NAME)")
    try:
        wanted = [CONFIG, PROCESSOR, "*.safetensors", INDEX]
        folder = Path(snapshot_download(name, allow_patterns=wanted, **hub))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(name, allow_patterns=[OLD_WEIGHTS], **hub)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is no folder, and the hub did not give it: {error}") from error
    return folder


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder: safetensors (one file or sharded), or else pytorch_model.bin."""
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return read_shards(folder)
    if (folder / OLD_WEIGHTS).is_file():
        return only_tensors(read_torch(folder / OLD_WEIGHTS), folder / OLD_WEIGHTS)
    raise ValueError(f"{folder}: expected {WEIGHTS}, {INDEX} or {OLD_WEIGHTS}")


def read_shards(folder: Path) -> dict[str, Tensor]:
    """The tensors of all files that the index names."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    shards = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not shards or any(Path(str(shard)).name != shard for shard in shards):
        raise ValueError(f"{folder / INDEX}: expected a weight_map to files of its own folder")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(shards):
        tensors |= read_safetensors(folder / shard)
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: expected a safetensors file: {error}") from error


def read_torch(path: Path) -> Any:
    """A file of torch.save, read with weights_only=True: nothing in it is executed."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of any other kind may fail anywhere in the reader
        raise ValueError(f"{path}: expected weights saved by torch.save: {error}") from error


def only_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """`content`, if it is a dictionary of tensors; ValueError naming the file if not."""
    if isinstance(content, dict) and all(isinstance(t, Tensor) for t in content.values()):
        return content
    raise ValueError(f"{path}: expected a dictionary of weights")
