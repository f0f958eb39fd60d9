"""benchmarks/tune.py: the search finds what is faster and right, and the table survives it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backends import interpreted

pytest.importorskip("triton")

import tune

from maskformer_fast import ops
from maskformer_fast.kernels import launch
from maskformer_fast.kernels.launch import Config, configuration

ROOT = Path(__file__).parent.parent
made_up_times = pytest.mark.skipif(
    not interpreted(), reason="the times are made up, for Triton's interpreter"
)
START = Config("mask_logits.product", "float32", {"BLOCK_M": 64, "BLOCK_K": 16}, 4, 2)


def distance(config, **wanted):
    """How many steps a tile is from the wanted one."""
    entry = config.entry()
    return sum(abs(math.log2(entry[key] / size)) for key, size in wanted.items())


def test_the_search_walks_to_the_fastest_tile():
    wanted = {"BLOCK_M": 16, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
    measure = lambda config: 1 + distance(config, **wanted)  # noqa: E731
    best, time = tune.search(START, measure(START), measure)
    assert best.entry() == wanted and time == 1


def test_what_fails_or_is_hardly_faster_is_passed_over(capsys):
    def measure(config):
        if config["BLOCK_M"] != 64:
            raise tune.Different("wrong")
        return 1 - tune.MARGIN / 2 if config != START else 1

    assert tune.search(START, 1, measure) == (START, 1)
    assert "BLOCK_M': 128" in capsys.readouterr().err


def test_warps_and_stages_stay_in_bounds():
    edge = Config("a.b", "c", {"BLOCK_M": 1}, 16, 1)
    entries = [config.entry() for config in tune.neighbours(edge)]
    assert all(0 < e["num_warps"] <= 16 and e["num_stages"] > 0 and e["BLOCK_M"] for e in entries)


def test_another_result_is_an_error():
    right = (torch.tensor([1.0, 2.0]),)
    tune.check(right, right)
    for wrong in (torch.tensor([1.0, 2.001]), torch.tensor([1.0, math.nan])):
        with pytest.raises(tune.Different, match="apart"):
            tune.check((wrong,), right)


def test_the_text_of_the_table_is_what_it_says():
    document = json.loads(launch.TABLE.read_text(encoding="utf-8"))
    assert json.loads(tune.as_text(document)) == document
    assert launch.TABLE.read_text(encoding="utf-8") == tune.as_text(document)


NAME = ("mask_logits.product", "half")


def small_workload(rows):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1, rows, 16, generator=generator).half()
    features = torch.randn(1, 16, 4, 8, generator=generator).half()
    return lambda backend: (ops.mask_logits(queries, features, backend=backend),)


def entries(path):
    return json.loads(path.read_text())["sm_80"]["mask_logits.product"]


@made_up_times
def test_tunes_the_kernels_that_a_workload_starts(tmp_path, capsys):
    def clock(_, key):  # the smallest tile is the fastest
        assert key == NAME
        return float(configuration(*key, torch.device("cpu"))["BLOCK_P"])

    path = tmp_path / "table.json"
    tune.tune([small_workload(70)], clock, path)
    before, after = (json.loads(p.read_text()) for p in (launch.TABLE, path))
    entry = after["sm_80"]["mask_logits.product"]
    assert entry["half"]["BLOCK_P"] < before["sm_80"]["mask_logits.product"]["half"]["BLOCK_P"]
    entry["half"] = before["sm_80"]["mask_logits.product"]["half"]
    assert after == before
    assert capsys.readouterr().out.startswith("mask_logits.product half: ")


@made_up_times
def test_a_tile_is_chosen_by_all_workloads_and_a_later_run_goes_on_from_it(tmp_path):
    first, second = small_workload(70), small_workload(80)

    def clock(workload, key):  # the first wants 32 cells, a little; the second 64, much
        cells = configuration(*key, torch.device("cpu"))["BLOCK_P"]
        wanted, weight = (32, 1) if workload is first else (64, 3)
        return 1 + weight * abs(math.log2(cells / wanted))

    path = tmp_path / "table.json"
    tune.tune([first, second], clock, path)
    assert entries(path)["half"]["BLOCK_P"] == 64
    tune.tune([second], lambda *_: 1.0, path)  # nothing is faster
    assert entries(path)["half"]["BLOCK_P"] == 64


@made_up_times
def test_only_the_kernels_of_the_class_are_timed(monkeypatch):
    class Event:
        def __init__(self, **_):
            pass

        def record(self):
            pass

        def elapsed_time(self, _):
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    start = launch.start
    assert tune.own_time(small_workload(70), NAME) == 2.0
    assert tune.own_time(small_workload(70), ("mask_logits.product", "float32")) == 0
    assert launch.start is start


@made_up_times
def test_a_table_that_computes_something_else_is_refused(tmp_path):
    right = small_workload(70)
    wrong = lambda backend: tuple(x + (backend == "triton") for x in right(backend))  # noqa: E731
    with pytest.raises(tune.Different):
        tune.tune([wrong], lambda *_: 1.0, tmp_path / "table.json")
    assert not (tmp_path / "table.json").exists()


@pytest.mark.skipif(not interpreted(), reason="the workloads are too large for a test on a GPU")
@pytest.mark.parametrize("op", tune.WORKLOADS)
def test_the_workloads_start_every_class_of_the_table(monkeypatch, op):
    started = set()
    monkeypatch.setattr(
        launch, "start", lambda k, g, config, *_: started.add((config.name, config.size_class))
    )
    monkeypatch.setattr(tune, "HALF", "float16")  # what the interpreter takes
    if op != "mask_loss":  # whose classes depend on the size
        monkeypatch.setattr(tune, "B", 1)
        monkeypatch.setattr(tune, "GRID", (8, 8))
    for workload in tune.WORKLOADS[op](torch.device("cpu")):
        workload("triton")
    listed = {
        (name, size_class)
        for name, classes in launch.table()["sm_80"].items()
        for size_class in classes
        if name.startswith(f"{op}.")
    }
    assert started == listed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to tune")
def test_without_a_gpu_it_says_so():
    command = [sys.executable, ROOT / "benchmarks" / "tune.py", "mask_logits"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "no NVIDIA GPU" in done.stderr
