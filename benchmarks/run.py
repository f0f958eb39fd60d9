"""Time every step with every backend and every peer, on the same inputs, results checked first.

python benchmarks/run.py                       all cases: a table on stdout
python benchmarks/run.py semantic_map --quick  one case, small shapes, few rounds
python benchmarks/run.py --json                also benchmarks/results/<device>.json and pictures
python benchmarks/run.py --compare old.json --fail-above 0.2
python benchmarks/run.py --readme              no run: README.md's table from the JSON

Needs pytest-benchmark. Peers (transformers, lapx, ...) and matplotlib are optional: what is not
installed is a row that says so; pip install 'maskformer-fast[bench]' has them all. The cases are
in benchmarks/cases and also run as `pytest benchmarks/cases`.

stdout is data, stderr is log. Exit codes: 0 all went well; 1 a backend gave a wrong result or
failed, or is slower than --fail-above allows; 2 the arguments are not understood.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report

ROOT = Path(__file__).resolve().parent.parent
CASES = {path.stem: path for path in sorted((ROOT / "benchmarks" / "cases").glob("*.py"))}
DEFAULT_JSON = Path()  # stands for benchmarks/results/<device>.json
OK, FAILED = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.readme:
        _write_readme(options)
        return OK
    old = json.loads(options.compare.read_text()) if options.compare else None
    status, found = _measure(options)
    if found is None:
        _log("nothing was timed")
        return FAILED
    print(report.table(found))
    if options.json:
        _write(found, _json_path(options))
    if old is None:
        return status
    print(f"\n{report.comparison(old, found)}")
    slower = report.slower(old, found, options.fail_above)
    for row in slower:
        _log(f"slower than allowed: {row['title']} {row['shape']} {row['contender']}")
    return FAILED if slower else status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    text = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py",
        description=text[0],
        epilog=text[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("cases", nargs="*", metavar="op", help=f"of {', '.join(CASES)}; default: all")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where inputs live")
    add("--backends", default="", help="comma separated; default: all that take the device")
    add("--quick", action="store_true", help="few and small shapes, few rounds, no torch.compile")
    add("--json", nargs="?", type=Path, const=DEFAULT_JSON, help="write the report, and pictures")
    add("--compare", type=Path, metavar="OLD.json", help="print the change against a report")
    add("--fail-above", type=float, default=float("inf"), help="0.2: exit 1 if 20%% slower")
    add("--readme", action="store_true", help="run nothing, write README.md's table")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        parser.error(f"op: expected some of {', '.join(CASES)}; got {', '.join(unknown)}")
    partial = options.cases or options.quick or options.backends
    if options.json == DEFAULT_JSON and partial and not options.readme:
        parser.error("--json: expected a path, as this is not a run of everything")
    if options.compare and not options.compare.is_file():
        parser.error(f"--compare: no such file: {options.compare}")
    if options.fail_above != float("inf") and not options.compare:
        parser.error("--fail-above: expected --compare with it")
    if importlib.util.find_spec("pytest_benchmark") is None:
        parser.error("pytest-benchmark is not installed; pip install pytest-benchmark")
    return options


def _measure(options: argparse.Namespace) -> tuple[int, report.Report | None]:
    """Run the cases; pytest's progress goes to stderr."""
    import pytest

    paths = [str(CASES[name]) for name in options.cases or CASES]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        written = Path(folder) / "pytest_benchmark.json"
        command = [*paths, f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}"]
        command += [
            "-q",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            "--disable-warnings",
            "--benchmark-quiet",
        ]
        command += [f"--benchmark-json={written}", f"--device={options.device}"]
        command += [f"--backends={options.backends}", *["--quick"] * options.quick]
        status = pytest.main(command)
        if not written.exists() or not written.stat().st_size:
            return FAILED, None
        document: dict[str, Any] = json.loads(written.read_text())
    return FAILED if status else OK, report.from_pytest(document)


def _json_path(options: argparse.Namespace) -> Path:
    if options.json and options.json != DEFAULT_JSON:
        return options.json
    import torch
    from environment import device_name

    name = re.sub(r"[^a-z0-9]+", "-", device_name(torch.device(options.device)).lower())
    return ROOT / "benchmarks" / "results" / f"{name.strip('-')}.json"


def _write(found: report.Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    written = [path]
    if importlib.util.find_spec("matplotlib") is None:
        _log("no pictures: matplotlib is not installed")
    else:
        import plots

        written += plots.write(found, path)
    for file in written:
        _log(f"wrote {file}")


def _write_readme(options: argparse.Namespace) -> None:
    readme, path = ROOT / "README.md", _json_path(options)
    found = json.loads(path.read_text(encoding="utf-8"))
    text = readme.read_text(encoding="utf-8")
    readme.write_text(report.replace_between_markers(text, report.markdown(found)), "utf-8")
    _log(f"wrote {readme}")


def _log(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
