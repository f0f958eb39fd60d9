"""What makes the modules in cases/ pytest-benchmark cases.

A case module has SHAPES and QUICK_SHAPES (a list of NamedTuples each), PEERS (race.py) and
make_race(settings, shape). Its test runs once for each shape and each contender; the contenders
of one shape share a race, which is run when the first of them asks for its times.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from environment import environment
from race import AUTO, Race, Settings, clock, describe

from maskformer_fast.ops.registry import BACKENDS

SETTINGS = pytest.StashKey[Settings]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("maskformer_fast")
    group.addoption("--device", default="cpu", help="cpu or cuda")
    group.addoption("--backends", default="", help="comma separated; default: all of the device")
    group.addoption("--quick", action="store_true", help="few and small shapes, few rounds")


def pytest_configure(config: pytest.Config) -> None:
    names = tuple(filter(None, config.getoption("--backends").split(",")))
    unknown = set(names) - {*BACKENDS, AUTO}
    if unknown:
        raise pytest.UsageError(f"--backends: expected some of {BACKENDS}, got {sorted(unknown)}")
    config.stash[SETTINGS] = Settings(
        torch.device(config.getoption("--device")), config.getoption("--quick"), names
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings, case = metafunc.config.stash[SETTINGS], metafunc.module
    shapes = case.QUICK_SHAPES if settings.quick else case.SHAPES
    if settings.device.type == "cuda" and not settings.quick:
        shapes = [*shapes, *getattr(case, "CUDA_SHAPES", [])]
    metafunc.parametrize("shape", shapes, ids=map(describe, shapes), scope="module")
    metafunc.parametrize("contender", [*settings.contending_backends, *case.PEERS])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock))


@pytest.fixture(scope="session")
def settings(pytestconfig: pytest.Config) -> Settings:
    return pytestconfig.stash[SETTINGS]


@pytest.fixture(scope="module")
def race(request: pytest.FixtureRequest, settings: Settings, shape: tuple[Any, ...]) -> Race:
    return request.module.make_race(settings, shape)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    settings = config.stash[SETTINGS]
    machine_info["maskformer_fast"] = environment(settings.device) | {"quick": settings.quick}


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["untimed"] = config.stash[SETTINGS].untimed
