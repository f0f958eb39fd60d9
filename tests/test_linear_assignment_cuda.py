"""linear_assignment on CUDA, or emulated: every plan of the kernel, and what only it can break."""

import numpy as np
import pytest
import torch
from backends import CUDA_BACKENDS, device_of, each_backend
from test_linear_assignment import FAMILIES, INF, NAN, UNMATCHED, check, random, run
from torch import Tensor

import maskformer_fast
from maskformer_fast.ops import Assignment
from maskformer_fast.ops.linear_assignment import OPTIMAL
from maskformer_fast.ops.registry import cuda_module

ROUNDS, PROBLEMS = 50, 200  # ten thousand
FEW, MANY = 2, 200  # problems: with costs in shared memory, and read through the caches

# One warp, several warps, and too many columns for registers, on both sides of each border.
WIDE = [(3, 127), (4, 128), (128, 128), (3, 129), (129, 128), (140, 140), (300, 7), (5, 1024)]
LARGE = [(3, 1025), (1100, 4), (40, 1030)]

FAR_FROM_ZERO = {
    "early_at_1e9": lambda n, t, q: 1e9 + FAMILIES["early_training"](n, t, q),
    "faint_noise": lambda n, t, q: (
        1e6 * (random(n, t, 1) + random(n, 1, q, seed=1)) + 1e-6 * random(n, t, q, seed=2)
    ),
    "huge_columns": lambda n, t, q: 1e12 * random(n, 1, q) + random(n, t, q, seed=1),
    "one_outlier": lambda n, t, q: (
        FAMILIES["early_training"](n, t, q) + 1e30 * (torch.arange(t * q) == 5).view(t, q)
    ),
}


each_cuda_backend = each_backend("linear_assignment", of=CUDA_BACKENDS)


def with_non_finite(cost: Tensor, seed: int) -> Tensor:
    """`cost` with single entries, a row and a column of NaN and infinities."""
    n, t, q = cost.shape
    draw = random(n, t, q, seed=seed)
    cost = cost.clone()
    cost[draw < 0.1] = NAN
    cost[draw > 0.9] = -INF
    cost[::2, t // 2] = INF
    cost[1::2, :, q // 3] = NAN
    return cost


@each_cuda_backend
def test_ten_thousand_random_rectangles_equal_scipy(backend: str) -> None:
    sizes = np.random.default_rng(1).integers(1, 11, size=(ROUNDS, 2)).tolist()
    families = list(FAMILIES.values())
    for seed, (t, q) in enumerate(sizes):
        cost = families[seed % len(families)](PROBLEMS, t, q)
        if seed % 5 == 4:
            cost = with_non_finite(cost, seed)
        check(cost, run(cost, backend))


@each_cuda_backend
@pytest.mark.parametrize("problems", [FEW, MANY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_number_of_targets_in_one_launch(
    backend: str, dtype: torch.dtype, problems: int
) -> None:
    most, queries = 13, 9
    for name, family in FAMILIES.items():
        cost = family(max(problems, most + 1), most, queries).to(dtype)
        counts = torch.arange(len(cost)) % (most + 1)
        for n, rows in enumerate(counts):
            cost[n, rows:] = NAN
        result = run(cost, backend, counts)
        check(cost, result, counts)
        assert (result.status == OPTIMAL).all(), name


@each_cuda_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", ["uniform", "early_training", "products", "integer_ties"])
def test_more_columns_than_a_warp_holds(backend: str, family: str, dtype: torch.dtype) -> None:
    for t, q in WIDE:
        cost = FAMILIES[family](1, t, q).to(dtype)
        check(cost, run(cost, backend))


@each_cuda_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_more_columns_than_registers_hold(backend: str, dtype: torch.dtype) -> None:
    for t, q in LARGE:
        for cost in (FAMILIES["early_training"](2, t, q), with_non_finite(random(2, t, q), 0)):
            check(cost.to(dtype), run(cost.to(dtype), backend))


@each_cuda_backend
def test_more_problems_than_blocks(backend: str) -> None:
    cost = FAMILIES["early_training"](270, 2, 1025)
    check(cost, run(cost, backend))


@each_cuda_backend
@pytest.mark.parametrize("family", FAR_FROM_ZERO)
def test_guessed_prices_that_rounding_spoils_do_no_harm(backend: str, family: str) -> None:
    for t, q in ((12, 40), (20, 100), (30, 30)):
        cost = FAR_FROM_ZERO[family](3, t, q)
        check(cost, run(cost, backend))


@each_cuda_backend
def test_counts_that_nobody_checked_stay_inside_the_tensors(backend: str) -> None:
    cost = random(3, 4, 5).to(device_of(backend))
    counts = torch.tensor([-7, 99, 2], dtype=torch.int32, device=cost.device)
    op = torch.ops.maskformer_fast.linear_assignment
    check(cost.cpu(), Assignment(*op(cost, counts, backend)), counts.cpu().clamp(0, 4))


@pytest.mark.skipif(
    maskformer_fast.backends()["linear_assignment"]["cuda_emulated"] is not None,
    reason="the emulation is not built",
)
@pytest.mark.parametrize("shape", [(6, 20, 40), (3, 20, 20), (2, 17, 150), (2, 9, 1030)], ids=str)
def test_any_order_of_threads_gives_the_same_bits(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in ("uniform", "early_training", "products", "integer_ties"):
        results = []
        for seed in ("0", "1", "2", "3"):
            monkeypatch.setenv("MASKFORMER_EMULATION_SEED", seed)
            results.append(run(FAMILIES[family](*shape), "cuda_emulated"))
        assert (results[0].query_of_target != UNMATCHED).all()
        for other in results[1:]:
            assert all(map(torch.equal, other, results[0]))


@each_cuda_backend
@pytest.mark.parametrize("sizes", [(-1, 3, 4), (2, -1, 4), (2, 3, 0)], ids=str)
def test_binding_refuses_impossible_sizes(backend: str, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"problems|targets|queries"):
        cuda_module(backend).linear_assignment_workspace(*sizes)
