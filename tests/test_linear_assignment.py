"""linear_assignment: totals against SciPy and against every permutation, never indices."""

import itertools

import numpy as np
import pytest
import torch
from backends import device_of, each_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

import maskformer_fast
from maskformer_fast.ops import Assignment, linear_assignment
from maskformer_fast.ops.linear_assignment import (
    OPTIMAL,
    RELATIVE_GAP,
    REPLACED,
    UNMATCHED,
    solve,
)
from maskformer_fast.ops.registry import compiled_module

NAN, INF = float("nan"), float("inf")
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-6,
    torch.float16: 1e-6,  # the costs are exact in float64, whatever they came in
    torch.bfloat16: 1e-6,
}
SHAPES = [(1, 1), (1, 7), (3, 3), (12, 100), (31, 33), (50, 100), (64, 64), (100, 17), (9, 1)]
every_backend = each_backend("linear_assignment")
not_compiled = maskformer_fast.backends()["linear_assignment"]["cpu"]
needs_compiled_module = pytest.mark.skipif(not_compiled is not None, reason=str(not_compiled))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FAMILIES = {
    "uniform": random,
    "early_training": lambda n, t, q: (
        random(n, t, 1) + random(n, 1, q, seed=1) + 1e-3 * random(n, t, q, seed=2)
    ),
    "products": lambda n, t, q: random(n, t, 1) * random(n, 1, q, seed=1),
    "integer_ties": lambda n, t, q: (random(n, t, q) * 5).floor(),
    "constant": lambda n, t, q: torch.full((n, t, q), -2.5, dtype=torch.float64),
    "negative": lambda n, t, q: -1e3 * random(n, t, q),
    "all_magnitudes": lambda n, t, q: 10 ** (16 * random(n, t, q) - 8),
    "last_bits": lambda n, t, q: 1 + (random(n, t, q) * 4).floor() * 2.0**-52,
    "few_cheap": lambda n, t, q: random(n, t, q) + 1e6 * (random(n, t, q, seed=1) < 0.9),
}


def value(cost: np.ndarray, query_of_target: np.ndarray) -> tuple[int, float]:
    """Non-finite entries taken, and the total of the finite ones, of a checked matching."""
    matched = np.flatnonzero(query_of_target != UNMATCHED)
    queries = query_of_target[matched]
    assert len(matched) == min(cost.shape) == len(set(queries.tolist()))
    assert all(0 <= q < cost.shape[1] for q in queries)
    taken = cost[matched, queries]
    finite = np.isfinite(taken)
    return int((~finite).sum()), float(taken[finite].sum())


def check(cost: Tensor, result: Assignment, num_targets: Tensor | None = None) -> None:
    """Every problem of [N, T, Q]: one-to-one, as good as SciPy's matching, and certified."""
    tolerance = TOLERANCE[cost.dtype]
    costs = cost.cpu().double().numpy()
    matchings, gaps, statuses = (part.cpu().numpy() for part in result)
    counts = [cost.shape[1]] * len(costs) if num_targets is None else num_targets.tolist()
    for matrix, matching, gap, status, rows in zip(
        costs, matchings, gaps, statuses, counts, strict=True
    ):
        matrix, padding = matrix[:rows], matching[rows:]
        assert (padding == UNMATCHED).all()
        replaced, total = value(matrix, matching[:rows])
        best_replaced, best = value(matrix, solve(matrix)[0])
        assert replaced == best_replaced
        assert total == pytest.approx(best, rel=tolerance, abs=1e-12)
        assert status == (OPTIMAL if np.isfinite(matrix).all() else REPLACED)
        if status == OPTIMAL:
            magnitude = abs(matrix[matching[:rows] >= 0, matching[matching >= 0]]).sum()
            assert -1e-12 * magnitude <= gap <= RELATIVE_GAP * max(1, magnitude)


def run(cost: Tensor, backend: str, num_targets: Tensor | None = None) -> Assignment:
    device = device_of(backend)
    counts = None if num_targets is None else num_targets.to(device)
    return linear_assignment(cost.to(device), counts, backend=backend)


@every_backend
def test_by_hand(backend: str) -> None:
    cost = tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
    assert run(cost, backend).query_of_target.tolist() == [1, 0, 2]  # 1 + 2 + 2
    greedy_is_wrong = tensor([[1.0, 2.0, 9.0], [1.0, 9.0, 9.0]])
    assert run(greedy_is_wrong, backend).query_of_target.tolist() == [1, 0]
    more_targets_than_queries = tensor([[5.0], [3.0], [4.0]])
    assert run(more_targets_than_queries, backend).query_of_target.tolist() == [-1, 0, -1]


@every_backend
def test_gap_and_status_by_hand(backend: str) -> None:
    cost = tensor([[[1.0, 2.0], [1.0, 9.0]], [[NAN, 2.0], [1.0, INF]], [[NAN, NAN], [1.0, 2.0]]])
    result = run(cost, backend)
    assert result.gap.tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert result.status.tolist() == [OPTIMAL, REPLACED, REPLACED]
    assert result.query_of_target[:2].tolist() == [[1, 0], [1, 0]]
    assert result.query_of_target[2, 1] == 0


@every_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_scipy(backend: str, family: str, dtype: torch.dtype) -> None:
    for t, q in SHAPES:
        cost = FAMILIES[family](2, t, q).to(dtype)
        check(cost, run(cost, backend))


@every_backend
def test_thousands_of_random_rectangles_equal_scipy(backend: str) -> None:
    sizes = np.random.default_rng(0).integers(1, 14, size=(40, 2)).tolist()
    for seed, (t, q) in enumerate(sizes):
        cost = random(50, t, q, seed=seed)
        check(cost, run(cost, backend))


@every_backend
@pytest.mark.parametrize("outlier", [1e30, -1e30, 1.7e308, -1.7e308])
def test_one_huge_entry_spoils_nothing_else(backend: str, outlier: float) -> None:
    cost = random(1, 8, 12)
    cost[0, 3, 5] = outlier
    result = run(cost, backend)
    assert result.status.item() == OPTIMAL
    matching = result.query_of_target[0]
    assert (matching[3] == 5) == (outlier < 0)
    if outlier > 0:
        check(cost, result)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_costs_whose_differences_exceed_their_dtype(backend: str, dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    by_hand = tensor([[-1.0, 0.5], [-1.0, 1.0]], dtype=torch.float64) * most
    assert run(by_hand.to(dtype), backend).query_of_target.tolist() == [1, 0]
    for n in (2, 3, 4):
        cost = ((2 * random(20, n, n) - 1) * most).to(dtype)
        result = run(cost, backend)
        assert (result.status == OPTIMAL).all()
        scaled = Assignment(result.query_of_target, result.gap / most, result.status)
        check(cost.double() / most, scaled)


@every_backend
@pytest.mark.parametrize(("t", "q"), [(5, 9), (7, 7), (9, 5)])
def test_as_few_non_finite_entries_as_possible_are_matched(backend: str, t: int, q: int) -> None:
    entries = random(5, t, q, seed=3)
    cost = 1e3 * random(5, t, q)
    cost[0][entries[0] < 0.2] = NAN
    cost[1][entries[1] < 0.6] = INF
    cost[2][entries[2] < 0.9] = -INF
    cost[3, 1] = NAN
    cost[4, :, 1:3] = INF
    check(cost, run(cost, backend))


@every_backend
@pytest.mark.parametrize("filling", [NAN, INF, -INF])
def test_without_any_finite_entry_it_still_matches(backend: str, filling: float) -> None:
    cost = torch.full((1, 3, 4), filling)
    result = run(cost, backend)
    check(cost, result)
    assert result.gap.item() == 0


@every_backend
def test_padding_is_not_matched_nor_looked_at(backend: str) -> None:
    cost = random(7, 6, 4)
    counts = tensor([0, 1, 2, 3, 4, 5, 6])
    for n, rows in enumerate(counts):
        cost[n, rows:] = NAN
    result = run(cost, backend, counts)
    check(cost, result, counts)
    assert result.status.tolist() == [OPTIMAL] * 7


@every_backend
def test_num_targets_broadcasts_over_leading_dimensions(backend: str) -> None:
    cost = random(3, 2 * 5, 8).reshape(3, 2, 5, 8)
    counts = tensor([5, 2], dtype=torch.int32)
    result = run(cost, backend, counts)
    assert result.query_of_target.shape == (3, 2, 5)
    assert result.gap.shape == result.status.shape == (3, 2)
    flat = Assignment(*(part.flatten(0, 1) for part in result))
    check(cost.flatten(0, 1), flat, counts.expand(3, 2).flatten())
    everywhere = run(cost, backend, tensor(1)).query_of_target
    assert (everywhere[..., 1:] == UNMATCHED).all()


@every_backend
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 0, 3, 4), (0, 4)], ids=str)
def test_empty_is_legal(backend: str, shape: tuple[int, ...]) -> None:
    result = run(torch.zeros(shape), backend)
    assert result.query_of_target.shape == shape[:-1]
    assert result.gap.shape == shape[:-2]
    assert (result.status == OPTIMAL).all()


@every_backend
@pytest.mark.parametrize("problems", [1, 2, 3, 9])
def test_a_problem_is_solved_alike_in_any_company(backend: str, problems: int) -> None:
    cost = random(problems, 14, 14)
    cost[0, 3, 4] = NAN  # it is solved in float64 throughout, between those that are not
    for t, q in ((14, 14), (8, 14), (14, 8)):
        together = run(cost[:, :t, :q].float(), backend)
        for n in range(problems):
            alone = run(cost[n, :t, :q].float(), backend)
            assert all(torch.equal(a, b[n]) for a, b in zip(alone, together, strict=True))


@every_backend
@pytest.mark.parametrize("family", ["early_training", "last_bits", "all_magnitudes"])
def test_many_columns(backend: str, family: str) -> None:
    for t, q in ((20, 3001), (1500, 9)):
        cost = FAMILIES[family](2, t, q)
        check(cost, run(cost, backend))
        check(cost.float(), run(cost.float(), backend))


@every_backend
def test_flushing_denormals_changes_nothing(backend: str) -> None:
    cost = FAMILIES["integer_ties"](4, 20, 30)
    square = FAMILIES["integer_ties"](4, 20, 20)
    expected = [run(cost, backend), run(square, backend)]
    try:
        torch.set_flush_denormal(True)
        results = [run(cost, backend), run(square, backend)]
    finally:
        torch.set_flush_denormal(False)
    for result, wanted in zip(results, expected, strict=True):
        assert all(map(torch.equal, result, wanted))


@every_backend
def test_without_num_targets_every_row_counts(backend: str) -> None:
    cost = random(3, 5, 7)
    assert all(map(torch.equal, run(cost, backend), run(cost, backend, tensor(5))))


@pytest.mark.large
@every_backend
def test_offsets_past_32_bits(backend: str) -> None:
    if backend == "reference":
        pytest.skip("reference: a million calls of SciPy")
    cost = torch.zeros(2**20 + 1, 2, 1025, device=device_of(backend))
    assert cost[:-1].numel() > 2**31
    cost[-2:] = random(2, 2, 1025).to(cost)
    result = run(cost, backend)
    check(cost[-2:], Assignment(*(part[-2:] for part in result)))
    check(cost[:2], Assignment(*(part[:2] for part in result)))


@every_backend
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_permutation_is_better(backend: str, data: st.DataObject) -> None:
    t, q = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 5))
    entry = st.one_of(
        st.integers(-3, 3).map(float), st.floats(-1e6, 1e6), st.sampled_from([NAN, INF, -INF])
    )
    entries = data.draw(st.lists(entry, min_size=t * q, max_size=t * q))
    cost = np.array(entries, dtype=np.float64).reshape(t, q)
    matching = run(torch.from_numpy(cost), backend).query_of_target.cpu().numpy()
    bad, total = value(cost, matching)
    rounding = 1e-9 * max(1.0, np.abs(cost[np.isfinite(cost)]).sum())
    for queries in itertools.permutations([*range(q), *[UNMATCHED] * max(0, t - q)], t):
        other_bad, other = value(cost, np.array(queries, dtype=np.int64))
        assert (bad, total) <= (other_bad, other + rounding)


@every_backend
def test_opcheck(backend: str) -> None:
    cost = random(2, 3, 5).to(device_of(backend))
    counts = tensor([3, 1], dtype=torch.int32, device=cost.device)
    op = torch.ops.maskformer_fast.linear_assignment.default
    torch.library.opcheck(op, (cost, counts, backend))
    torch.library.opcheck(op, (cost, None, backend))


@every_backend
def test_compiles_in_one_graph_at_two_sizes(backend: str) -> None:
    compiled = torch.compile(
        lambda cost, counts: linear_assignment(cost, counts, backend=backend),
        fullgraph=True,
        backend="aot_eager",
    )
    for n, t, q in ((2, 3, 5), (4, 7, 6)):
        cost = random(n, t, q).to(device_of(backend))
        for counts in (torch.arange(n, device=cost.device), None):
            expected = linear_assignment(cost, counts, backend=backend)
            assert all(map(torch.equal, compiled(cost, counts), expected))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1.0]],), TypeError, "cost: expected a torch.Tensor, got list"),
        ((torch.zeros(3),), ValueError, r"cost: expected shape \[..., T, Q\], got \(3,\)"),
        ((torch.zeros(3, 3, dtype=torch.int64),), TypeError, "cost: .* got torch.int64"),
        ((torch.zeros(3, 0),), ValueError, "cost: .*Q = 0"),
        ((torch.zeros(2, 3, 4), tensor([1.0, 2.0])), TypeError, "num_targets: .*torch.float32"),
        ((torch.zeros(2, 3, 4), tensor([1, 2, 3])), ValueError, r"num_targets: .*\(3,\)"),
        ((torch.zeros(2, 3, 4), tensor([1, 4])), ValueError, r"num_targets: .*\[0, 3\].* 1 to 4"),
        ((torch.zeros(2, 3, 4), tensor([-1, 0])), ValueError, r"num_targets: .*-1 to 0"),
    ],
)
def test_bad_input_is_named(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear_assignment(*arguments)


def compiled_call(**changes: int) -> None:
    """The binding itself, on valid tensors but for `changes`."""
    cost, counts = torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int32)
    counts[0] = changes.pop("count", 0)
    query_of_target, gap = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2).double()
    status = torch.zeros(2, dtype=torch.int8)
    addresses = {
        "cost": cost.data_ptr(),
        "num_targets": counts.data_ptr(),
        "query_of_target": query_of_target.data_ptr(),
        "gap": gap.data_ptr(),
        "status": status.data_ptr(),
    }
    sizes = {"problems": 2, "targets": 3, "queries": 4, "threads": 1}
    compiled_module().linear_assignment(**addresses, float64=False, **(sizes | changes))


@needs_compiled_module
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("count", 4),
        ("count", -1),
        ("problems", -1),
        ("targets", -1),
        ("queries", 0),
        ("threads", 0),
    ],
)
def test_binding_refuses_what_would_leave_the_tensors(argument: str, value: int) -> None:
    compiled_call()
    with pytest.raises(ValueError, match="num_targets" if argument == "count" else argument):
        compiled_call(**{argument: value})


# Calls the module in a process of its own: the instruction set is chosen once. Without torch.
