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


@pytest.mark.skipif(not interpreted(), reason="the times are made up, for Triton's interpreter")
def test_tunes_the_kernels_that_a_workload_starts(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1, 70, 8, generator=generator).half()
    features = torch.randn(1, 8, 5, 6, generator=generator).half()

    def workload():
        return (ops.mask_logits(queries, features, backend="triton"),)

    def clock(_):  # the smallest tile is the fastest
        return float(configuration("mask_logits.product", "half", queries.device)["BLOCK_P"])

    path = tmp_path / "table.json"
    tune.tune(workload, clock, path)
    before, after = (json.loads(p.read_text()) for p in (launch.TABLE, path))
    entry = after["sm_80"]["mask_logits.product"]
    assert entry["half"]["BLOCK_P"] < before["sm_80"]["mask_logits.product"]["half"]["BLOCK_P"]
    entry["half"] = before["sm_80"]["mask_logits.product"]["half"]
    assert after == before
    assert capsys.readouterr().out.startswith("mask_logits.product half: ")


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
        workload()
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
