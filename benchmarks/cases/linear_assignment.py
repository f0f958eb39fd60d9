"""A batch of 64 assignments, as one call.

Targets x queries of usual images, of crowded ones, and of detectors with 300 queries. "uniform" is
the family that solvers are shown on; "early" is what training starts with, and far harder.
"""

from typing import Any, NamedTuple

import inputs
import peers
from differences import apart, total_cost
from race import Race, Settings
from torch import Tensor

from maskformer_fast.ops import linear_assignment


class Shape(NamedTuple):
    N: int
    T: int
    Q: int
    costs: str


COSTS = {"uniform": inputs.uniform_costs, "early": inputs.early_costs}
SIZES = [(12, 100), (50, 100), (100, 100), (300, 300)]
SHAPES = [Shape(64, *size, costs) for size in SIZES for costs in COSTS]
CUDA_SHAPES = [
    Shape(*sizes, costs)
    for sizes in ((96, 20, 100), (208, 100, 300), (208, 300, 300))
    for costs in COSTS
]
QUICK_SHAPES = [Shape(64, *size, costs) for size in SIZES[:2] for costs in COSTS]
PEERS = {
    "SciPy": peers.scipy,
    "lapx": peers.lapx,
    "torch-linear-assignment": peers.torch_linear_assignment,
}


def assign(cost: Tensor) -> Tensor:
    return linear_assignment(cost).query_of_target


def make_race(settings: Settings, shape: Shape) -> Race:
    cost = COSTS[shape.costs](shape.N, shape.T, shape.Q).to(settings.device)

    return Race(
        settings,
        title="assignment",
        shape=shape,
        ops=("linear_assignment",),
        inputs=(cost,),
        ours=assign,
        peers=PEERS,
        baseline="SciPy",
        difference=lambda got, expected: apart(
            total_cost(cost, got), total_cost(cost, expected), 1e-6
        ),
        traffic=inputs.bytes_of(cost) + 8 * shape.N * shape.T,  # indices of 8 bytes
    )


def test_assignment(race: Race, contender: str, benchmark: Any) -> None:
    race.record(contender, benchmark)
