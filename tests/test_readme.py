"""The README's snippets run as written, and its table of backends is the registry's."""

import re
from pathlib import Path

import pytest

from maskformer_fast.ops.registry import OPS

README = Path(__file__).parent.parent / "README.md"


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
