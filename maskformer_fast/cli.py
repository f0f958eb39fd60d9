"""The command line: predict, convert, info, bench.

stdout is data, stderr is log. Exit codes: 0 all went well, 1 something failed and stderr says what,
2 the arguments are not understood, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path

import torch
from tqdm import tqdm

from maskformer_fast import MaskFormer, __version__
from maskformer_fast.checkpoints.files import find_folder
from maskformer_fast.images import pictures_in, read_rgb
from maskformer_fast.info import info
from maskformer_fast.ops.panoptic_map import DIALECTS
from maskformer_fast.predict import TASKS, default_weights, predict, write_prediction

OK, FAILED, INTERRUPTED = 0, 1, 130
NO_PREFIX = "\0"  # no argument starts with it: options of another parser pass as they are
FAILURES = (OSError, ValueError, MemoryError, RuntimeError)  # of one picture, or of all


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        _log("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has left, as `head` does: nothing to flush to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except FAILURES as error:
        _log(f"error: {error}")
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="maskformer_fast", description="MaskFormer, fast.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_predict(commands)

    command = commands.add_parser("convert", help="detectron2 weights to a folder of this package")
    command.add_argument("file", type=Path, metavar="IN", help=".pkl or .pth file")
    command.add_argument("folder", type=Path, metavar="OUT", help="gets config and safetensors")
    command.set_defaults(run=_convert)

    command = commands.add_parser("info", help="versions, devices, and which backends run")
    command.set_defaults(run=_info)

    command = commands.add_parser(
        "bench",
        help="benchmarks/run.py of a checkout, with its arguments",
        add_help=False,
        prefix_chars=NO_PREFIX,
    )
    command.add_argument("arguments", nargs="*")
    command.set_defaults(run=_bench)
    return parser


def _add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "predict",
        help="segment pictures",
        description="Writes NAME.overlay.png, NAME.map.png and NAME.json into OUT for every"
        " picture, and prints one line of JSON about it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = command.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="picture, or folder of pictures")
    add("--out", type=Path, required=True, help="folder to write to; made if it is not there")
    add("--weights", help="folder or hub id", default=str(default_weights()))
    add("--task", choices=TASKS, default=TASKS[0], help="what to predict")
    add("--threshold", type=_share, default=0.5, help="least score; panoptic, instance")
    add("--mask-threshold", type=_share, default=0.5, help="of a mask's pixels; panoptic")
    add("--overlap-threshold", type=_share, default=0.8, help="least visible share; panoptic")
    add("--dialect", choices=DIALECTS, default=DIALECTS[0], help="rules; panoptic, semantic")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of torch")
    command.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    """Predict all pictures that can be, then tell of the others."""
    _refuse_file(options.out)
    model = _model(options.weights).to(_device(options.device))
    options.out.mkdir(parents=True, exist_ok=True)
    paths, failures = _find_pictures(options.images)
    rules = {
        name: getattr(options, name)
        for name in ("task", "threshold", "mask_threshold", "overlap_threshold", "dialect")
    }
    for path, name in tqdm(list(_named(paths)), desc="predict", unit="picture", disable=None):
        try:
            image = read_rgb(path)
            [prediction] = predict(model, [image], **rules)
            document = write_prediction(prediction, image, options.out, name, file=str(path))
        except FAILURES as error:
            failures.append(f"{path}: " + str(error).removeprefix(f"{path}: "))
            continue
        with tqdm.external_write_mode():
            print(json.dumps(document), flush=True)
    for failure in failures:
        _log(f"error: {failure}")
    if failures:
        _log(f"{len(failures)} failed")
    return FAILED if failures else OK


def _convert(options: argparse.Namespace) -> int:
    _refuse_file(options.folder)
    MaskFormer.from_detectron2(options.file).save_pretrained(options.folder)
    print(options.folder)
    return OK


def _info(options: argparse.Namespace) -> int:
    print(info())
    return OK


def _bench(options: argparse.Namespace) -> int:
    root = Path(__file__).resolve().parent.parent
    script = root / "benchmarks" / "run.py"
    if not script.is_file():
        raise FileNotFoundError(
            f"bench: {script} is not there: benchmarks are part of a checkout, not of the package"
        )
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(script), *options.arguments]
    return subprocess.run(command, env=environment).returncode


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text}")
    return value


def _refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder to write to, got a file")


def _model(weights: str) -> MaskFormer:
    folder = find_folder(weights)
    try:
        return MaskFormer.from_pretrained(folder)
    except Exception as error:  # a configuration of odd values may fail anywhere
        raise ValueError(f"{folder}: cannot be loaded ({error})") from error


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {name}: cannot be used ({reason})") from error


def _find_pictures(places: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The pictures at `places`, a folder's in order of name, and what is wrong with the others."""
    pictures: list[Path] = []
    failures: list[str] = []
    for place in places:
        try:
            if not place.exists():
                raise FileNotFoundError(f"{place}: no such file or folder")
            pictures += pictures_in(place) if place.is_dir() else [place]
        except OSError as error:
            failures.append(str(error))
    return pictures, failures


def _named(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Each path with a name of its own for its results: a.png, a.jpg -> a, a-2.

    Names that differ in case only count as equal, as some file systems take them.
    """
    taken: set[str] = set()
    for path in paths:
        names = chain([path.stem], (f"{path.stem}-{n}" for n in count(2)))
        name = next(name for name in names if name.casefold() not in taken)
        taken.add(name.casefold())
        yield path, name


def _log(text: str) -> None:
    print(text, file=sys.stderr)
