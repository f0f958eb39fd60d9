"""The package with and without its compiled module, and how a backend is chosen."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import maskformer_fast
from maskformer_fast.info import info
from maskformer_fast.ops import linear_assignment, registry
from maskformer_fast.ops.registry import BACKENDS, ENVIRONMENT_VARIABLE, register, resolve

COST = torch.tensor([[2.0, 1.0], [1.0, 3.0]])

# Importing the compiled module fails as it does where it was never built.
WITHOUT_COMPILED_MODULE = """
import sys

class NotBuilt:
    def find_spec(self, name, path=None, target=None):
        if name == "maskformer_fast._C":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, NotBuilt())
import torch
import maskformer_fast
from maskformer_fast.info import info

cost = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
print(maskformer_fast.ops.linear_assignment(cost).query_of_target.tolist())
print(maskformer_fast.backends()["linear_assignment"]["cpu"])
print(info())
try:
    maskformer_fast.ops.linear_assignment(cost, backend="cpu")
except RuntimeError as error:
    print("RuntimeError:", error)
"""


def test_works_without_the_compiled_module_and_says_so() -> None:
    command = [sys.executable, "-c", WITHOUT_COMPILED_MODULE]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    matching, reason, *rest = result.stdout.splitlines()
    assert matching == "[1, 0]"
    assert "No module named 'maskformer_fast._C'" in reason
    assert "pip install ." in reason
    assert f"RuntimeError: linear_assignment: backend 'cpu' cannot run: {reason}" == rest[-1]
    assert "compiled module   none (No module named 'maskformer_fast._C')" in rest


def test_the_module_says_what_its_cuda_part_was_built_for() -> None:
    module = pytest.importorskip("maskformer_fast._C")
    names = module.cuda_architectures()
    assert bool(names) == module.built_with_cuda()
    assert all(name.startswith(("sm_", "compute_")) for name in names)


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("sm_80 sm_86 sm_90 compute_90", (8, 0), True),
        ("sm_80 sm_86 sm_90 compute_90", (8, 9), True),  # code for sm_86
        ("sm_80 sm_86 sm_90 compute_90", (12, 0), True),  # PTX
        ("sm_80 sm_86 sm_90 compute_90", (7, 5), False),
        ("sm_86 sm_90", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("compute_80", (9, 0), True),
        ("sm_90a compute_90a", (9, 0), True),
        ("sm_90a compute_90a", (10, 0), False),
    ],
)
def test_a_gpu_that_the_module_was_not_built_for_is_named(
    built: str, capability: tuple[int, int], runs: bool
) -> None:
    obstacle = registry._architecture_obstacle(tuple(built.split()), capability)
    if runs:
        assert obstacle is None
    else:
        assert obstacle is not None and "the GPU is sm_{}{};".format(*capability) in obstacle


def test_info_lists_every_op_and_the_reason_of_every_no() -> None:
    text = info()
    assert maskformer_fast.__version__ in text and torch.__version__.split("+")[0] in text
    for op, row in maskformer_fast.backends().items():
        assert op in text
        for reason in row.values():
            assert reason is None or reason in text


def test_backends_has_a_row_for_each_op_and_the_reference_always_runs() -> None:
    table = maskformer_fast.backends()
    assert {"linear_assignment", "mask_logits", "mask_loss", "matching_cost"} <= set(table)
    for row in table.values():
        assert tuple(row) == BACKENDS
        assert row["reference"] is None


def test_a_backend_that_cannot_run_raises_with_its_reason() -> None:
    for backend, reason in maskformer_fast.backends()["linear_assignment"].items():
        if reason is not None:
            with pytest.raises(RuntimeError, match=f"linear_assignment: backend '{backend}'") as e:
                linear_assignment(COST, backend=backend)
            assert reason in str(e.value)


def test_argument_beats_context_beats_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cuda")
    with pytest.raises(RuntimeError, match="'cuda' cannot run"):
        linear_assignment(COST)
    with maskformer_fast.use_backend("triton"):
        with pytest.raises(RuntimeError, match="'triton' cannot run"):
            linear_assignment(COST)
        with maskformer_fast.use_backend("reference"):
            assert linear_assignment(COST).query_of_target.tolist() == [1, 0]
        with pytest.raises(RuntimeError, match="'cuda' cannot run"):
            linear_assignment(COST, backend="cuda")
    with pytest.raises(RuntimeError, match="'cuda' cannot run"):
        linear_assignment(COST)
    assert linear_assignment(COST, backend="reference").query_of_target.tolist() == [1, 0]


def test_use_backend_holds_for_its_own_thread() -> None:
    with ThreadPoolExecutor(1) as pool, maskformer_fast.use_backend("triton"):
        matching = pool.submit(linear_assignment, COST).result()
    assert matching.query_of_target.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["", "gpu", "CPU"])
def test_an_unknown_name_is_refused_wherever_it_comes_from(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=f"backend: expected .*got '{name}'"):
        linear_assignment(COST, backend=name)
    with (
        pytest.raises(ValueError, match="use_backend: expected"),
        maskformer_fast.use_backend(name),
    ):
        pass
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, name)
    with pytest.raises(ValueError, match=f"{ENVIRONMENT_VARIABLE}: expected"):
        linear_assignment(COST)


def test_float64_takes_the_reference_unless_the_kernels_know_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    assert resolve("mask_logits", "auto", "cpu", torch.float64) == "reference"
    if maskformer_fast.backends()["linear_assignment"]["cpu"] is None:
        assert resolve("linear_assignment", "auto", "cpu", torch.float64) == "cpu"


def test_a_device_without_kernels_runs_the_reference() -> None:
    assert resolve("linear_assignment", "auto", "mps", torch.float32) == "reference"


def test_register_refuses_backends_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"odd: expected backends of .*got \('gpu',\)"):
        register("odd", "() -> ()", fake=lambda: None, backends={"gpu": lambda: None})
