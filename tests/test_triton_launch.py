"""How a Triton kernel finds its tile, and what backend "triton" refuses."""

import json

import pytest
import torch
from backends import device_of, interpreted

pytest.importorskip("triton")

from maskformer_fast import ops
from maskformer_fast.kernels import launch
from maskformer_fast.kernels.launch import Config, configuration, table, using

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((8, 0), "sm_80"),
        ((8, 6), "sm_80"),
        ((8, 9), "sm_80"),
        ((9, 0), "sm_90"),
        ((12, 0), "sm_90"),
    ],
)
def test_a_gpu_uses_the_newest_tiles_that_are_not_newer_than_itself(
    monkeypatch, capability, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert launch.architecture.__wrapped__(torch.device("cuda", 0)) == expected


def test_an_older_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(RuntimeError, match=r"need sm_80 or newer; got \(7, 5\)"):
        launch.architecture.__wrapped__(torch.device("cuda", 0))


def test_both_architectures_have_the_same_kernels_and_classes():
    names = [{k: set(classes) for k, classes in kernels.items()} for kernels in table().values()]
    assert list(table()) == list(launch.ARCHITECTURES)
    assert names[0] == names[1]


def test_entries_survive_the_file():
    document = json.loads(launch.TABLE.read_text(encoding="utf-8"))
    for architecture, kernels in table().items():
        for name, classes in kernels.items():
            for size_class, config in classes.items():
                assert config.entry() == document[architecture][name][size_class]


def test_using_replaces_one_class_and_restores_it():
    name, size_class = "mask_logits.product", "half"
    before = configuration(name, size_class, CPU)
    first, second = (Config(name, size_class, {"BLOCK_M": m}, 1, 1) for m in (16, 32))
    with using(first):
        with using(second):
            assert configuration(name, size_class, CPU) is second
            assert configuration(name, "float32", CPU)["BLOCK_M"] != second["BLOCK_M"]
        assert configuration(name, size_class, CPU) is first
    assert configuration(name, size_class, CPU) == before


def test_what_16_divides_is_aligned():
    x = torch.zeros(2, 32, 48)
    flat = torch.zeros(2 * 32 * 48 + 4)
    assert launch.aligned(x, x.mT, x[:, ::2], x[..., 16:], x.new_zeros(()).expand(3, 5), 0, 160)
    assert not launch.aligned(x, 100) and not launch.aligned(x[..., :47].contiguous())
    assert not launch.aligned(flat[1:-3].view(x.shape)) and launch.aligned(flat[4:].view(x.shape))


def test_an_empty_grid_starts_nothing():
    launch.launch(None, (3, 0), configuration("mask_logits.product", "half", CPU))


def test_a_grid_that_no_gpu_takes_is_refused():
    zeros = torch.zeros(1, 1, 1, device=device_of("triton")).expand(65536, 1, 1)
    with pytest.raises(ValueError, match=r"mask_logits.product: \(1, 65536\) programs"):
        ops.mask_logits(zeros, zeros[..., None], backend="triton")


@pytest.mark.skipif(not interpreted(), reason="Triton compiles here")
def test_the_interpreter_refuses_bfloat16():
    queries, features = torch.zeros(1, 2, 3).bfloat16(), torch.zeros(1, 3, 4, 5).bfloat16()
    with pytest.raises(RuntimeError, match=r"interpreter .* computes bfloat16 wrongly"):
        ops.mask_logits(queries, features, backend="triton")


def test_float64_is_refused():
    queries, features = torch.zeros(1, 2, 3).double(), torch.zeros(1, 3, 4, 5).double()
    with pytest.raises(RuntimeError, match="got float64"):
        ops.mask_logits(queries, features, backend="triton")
