"""What README says and runs holds, and files that documents name exist."""

import re
from pathlib import Path

import pytest

from maskformer_fast.ops.registry import OPS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]


@pytest.fixture(scope="module")
def text() -> str:
    return README.read_text(encoding="utf-8")


def test_every_python_snippet_runs(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 3
    names: dict = {}
    for snippet in snippets:
        exec(snippet, names)
    assert (tmp_path / "scenes" / "first.overlay.png").is_file()


def test_the_table_of_backends_is_the_registrys(text):
    columns = ("reference", "cpu", "triton", "cuda")
    rows = {}
    for name, cells in re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE):
        rows[name] = [cell.strip() == "yes" for cell in cells.split("|")]
    expected = {
        op.name: [column in op.backends for column in columns]
        for op in OPS.values()
        if not op.name.endswith("_backward")
    }
    assert rows == expected


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_source_files_that_are_named_exist(document):
    folders = ("benchmarks", "csrc", "examples", "maskformer_fast", "tests")
    files = [str(path) for folder in folders for path in (ROOT / folder).rglob("*.*pp")]
    files += [str(path) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    names = re.findall(r"[\w./]+\.(?:cpp|hpp|py)\b", document.read_text(encoding="utf-8"))
    missing = [n for n in names if not any(f.endswith(f"/{n}") for f in files)]
    assert not missing
