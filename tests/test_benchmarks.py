"""benchmarks/run.py: the report is consistent, and what is missing, wrong or slower is said."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import report
import run as runner

from maskformer_fast.cli import main as command_line

ROOT = Path(__file__).parent.parent
OK, FAILED, USAGE = 0, 1, 2
pytest.importorskip("pytest_benchmark")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One quick run where lapx does not import: the process and its report."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "lap.py").write_text("raise ImportError")
    path = folder / "report.json"
    # pytest-benchmark times nothing where it sees an outer pytest-xdist
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
    command = [sys.executable, ROOT / "benchmarks" / "run.py", "linear_assignment", "--quick"]
    command += ["--backends", "cpu,reference", "--json", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == OK, done.stderr
    return done, json.loads(path.read_text())


def test_the_report_has_every_contender_at_every_shape(run):
    _, found = run
    assert found["environment"]["quick"] and found["environment"]["threads"] >= 1
    shapes = {row["shape"] for row in found["rows"]}
    contenders = {row["contender"] for row in found["rows"]}
    assert len(shapes) == 4 and {"reference", "cpu", "SciPy", "lapx"} <= contenders
    assert len(found["rows"]) == len(shapes) * len(contenders)
    for row in found["rows"]:
        assert ("median_s" in row) != ("reason" in row)


def test_figures_of_a_row_agree(run):
    _, found = run
    timed = [row for row in found["rows"] if "median_s" in row]
    baseline = {row["shape"]: row["median_s"] for row in timed if row["baseline"]}
    for row in timed:
        assert 0 < row["p20_s"] <= row["median_s"] <= row["p80_s"] and row["calls"] >= 3
        assert row["ratio"] == pytest.approx(baseline[row["shape"]] / row["median_s"])
        assert row["gb_per_s"] > 0


def test_a_peer_that_is_not_installed_is_a_row(run):
    done, found = run
    reasons = {row["reason"] for row in found["rows"] if row["contender"] == "lapx"}
    assert reasons == {"not installed"}
    assert "lapx: not installed" in done.stdout


def test_the_table_shows_all_rows(run):
    done, found = run
    for row in found["rows"]:
        assert row["shape"] in done.stdout and row["contender"] in done.stdout


@pytest.mark.parametrize(("factor", "status"), [(1.0, OK), (1000.0, FAILED)])
def test_slower_than_an_old_report_fails(run, tmp_path, monkeypatch, capsys, factor, status):
    _, found = run
    old = copy.deepcopy(found)
    for row in old["rows"]:
        if "ratio" in row:
            row["ratio"] *= factor
    (tmp_path / "old.json").write_text(json.dumps(old))
    monkeypatch.setattr(runner, "_measure", lambda options: (OK, found))
    assert runner.main(["--compare", str(tmp_path / "old.json"), "--fail-above", "0.5"]) == status
    captured = capsys.readouterr()
    assert "+0% time" in captured.out if status == OK else "slower than" in captured.err


def test_comparison_allows_what_is_within_the_limit():
    def one(ratio, median_s=1.0, kind="backend"):
        row = {"case": "c", "title": "t", "shape": "s", "contender": "cpu", "kind": kind}
        return {"rows": [row | {"ratio": ratio, "median_s": median_s}]}

    assert report.slower(one(2.0), one(1.9), 0.1) == []
    assert report.slower(one(2.0), one(1.0), 0.1) == one(1.0)["rows"]
    assert report.slower(one(2.0, 1.0), one(2.0, 9.0), 0.1) == []  # the whole machine is slower
    assert len(report.slower(one(None, 1.0), one(None, 9.0), 0.1)) == 1
    assert report.slower(one(2.0, kind="peer"), one(1.0, kind="peer"), 0.1) == []
    gone = one(None)
    del gone["rows"][0]["median_s"]
    gone["rows"][0]["reason"] = "it broke"
    assert len(report.slower(one(2.0), gone, 0.1)) == 1


def test_the_readme_is_replaced_between_the_markers_only(run):
    _, found = run
    text = f"before\n{report.START}\nold\n{report.END}\nafter\n"
    new = report.replace_between_markers(text, report.markdown(found))
    assert new.startswith("before\n") and new.endswith("\nafter\n") and "old" not in new
    assert "| assignment | N=64 T=12 Q=100 costs=early | SciPy |" in new
    assert report.replace_between_markers(new, "old") == text
    with pytest.raises(ValueError, match="expected a line"):
        report.replace_between_markers("no markers", "new")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nonsense"], "op: expected some of"),
        (["model", "--json"], "expected a path"),
        (["--compare", "missing.json"], "no such file"),
        (["--fail-above", "0.1"], "expected --compare"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        runner.main(options)
    assert stopped.value.code == USAGE
    assert message in capsys.readouterr().err


def test_the_command_line_runs_it(capfd):
    assert command_line(["bench", "nonsense", "--quick"]) == USAGE
    assert "op: expected some of" in capfd.readouterr().err
    assert command_line(["bench", "--help"]) == OK
    assert "--fail-above" in capfd.readouterr().out


def test_the_command_line_says_that_it_needs_a_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("maskformer_fast.cli.__file__", str(tmp_path / "package" / "cli.py"))
    assert command_line(["bench"]) == FAILED
    assert "part of a checkout" in capsys.readouterr().err
