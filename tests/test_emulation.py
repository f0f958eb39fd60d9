"""The emulator of CUDA kernels (tests/emulation): what it must run, and what it must refuse.

One executable holds the kernels, tests/emulation/checks/*.cu; `make emulation` builds it.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

BUILT = Path(__file__).parents[1] / "build/emulation/checks_of_emulator"
CHECKS = Path(os.environ.get("MASKFORMER_EMULATOR_CHECKS", BUILT))
SEEDS = (0, 1, 2)  # orders of threads and blocks

ACCEPTED = (
    *("shuffles", "votes", "reductions", "partial_masks", "counting_barriers"),
    *("indices", "shared_memory", "warp_barriers", "partial_barriers", "bytes", "atomics"),
    *("last_block", "maths", "host_threads", "recovery"),
)
PLACE = r"block \(\d, 0, 0\), thread \(\d+, 0, 0\)"
BARRIER = r"barrier in waits\.cu:\d+"
RACE = (
    r"race: (reads|writes|changes) {memory} memory in accesses\.cu:\d+ that {who} \w+ in accesses"
)
IN_BLOCK = r"thread [\d, ]+ of its block"
BEYOND = r"(reads|writes) shared memory beyond its dynamic bytes, in accesses\.cu:\d+"
UNWRITTEN = r"reads shared memory that nobody has written, in accesses\.cu:\d+"

WAITS = {  # with every build
    "barrier_left": rf"(leaves .* waits at the {BARRIER}|{BARRIER}, which .* has left).*{PLACE}",
    "barrier_skipped": rf"(leaves .* waits at the {BARRIER}|{BARRIER}, which .* has left).*{PLACE}",
    "barriers_differ": rf"reaches the {BARRIER} while thread .* waits at the {BARRIER}; {PLACE}",
    "barrier_against_exchange": rf"__shfl_sync in waits\.cu:\d+.*; {PLACE}",
    "exchange_left": rf"__shfl_sync in waits\.cu:\d+.*(for ever|has left the kernel); {PLACE}",
    "exchanges_differ": r"reaches __(ballot_sync|syncwarp) in .* names lane \d+; that one waits in",
    "masks_differ": r"reaches __syncwarp in .* names lane \d+; that one waits in __syncwarp",
    "lane_not_in_mask": "__syncwarp: its own lane is not in the mask",
    "lane_absent": r"reaches __syncwarp in .*, which names lane \d+; that one does not exist",
    "lane_outside_mask": "__shfl_sync: reads lane 8, which is not in the mask",
    "block_too_large": r"no GPU takes block \(1024, 2, 1\)",
    "shared_too_large": "no GPU takes 102400 bytes of dynamic shared memory",
}
RACES = {  # without a sanitizer
    "shared_race": RACE.format(memory="shared", who=IN_BLOCK),
    "write_race": RACE.format(memory="shared", who=IN_BLOCK),
    "read_race": RACE.format(memory="shared", who=IN_BLOCK),
    "warp_race": RACE.format(memory="shared", who=IN_BLOCK) + f"|{UNWRITTEN}",
    "warps_race": RACE.format(memory="shared", who=IN_BLOCK) + f"|{UNWRITTEN}",
    "partial_race": RACE.format(memory="shared", who=IN_BLOCK) + f"|{UNWRITTEN}",
    "atomic_race": RACE.format(memory="shared", who=IN_BLOCK),
    "blocks_race": RACE.format(memory="global", who="another block"),
    "fence_race": RACE.format(memory="global", who="another block"),
    "bytes_race": RACE.format(memory="global", who=IN_BLOCK),
    "unwritten": UNWRITTEN,
    "dynamic_bounds": BEYOND,
    "negative_index": BEYOND,
    "local_memory": r"reads global memory that is local to another thread, in accesses\.cu:\d+",
}
ADDRESSES = {  # with AddressSanitizer and UBSan
    "static_bounds": "index 63 out of bounds|global-buffer-overflow",
    "global_bounds": "heap-buffer-overflow",
    "dynamic_bounds": "use-after-poison",
    "negative_index": "use-after-poison",
}


def listing() -> list[str]:
    if not CHECKS.exists():
        pytest.skip("the emulation is not built (`make emulation`)")
    return subprocess.run([CHECKS], capture_output=True, text=True, check=True).stdout.splitlines()


def run(name: str, seed: int) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MASKFORMER_EMULATION_SEED": str(seed)}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
    return subprocess.run(
        [CHECKS, name], capture_output=True, text=True, timeout=60, env=environment
    )


def refused(name: str, pattern: str, seed: int) -> None:
    result = run(name, seed)
    assert result.returncode != 0
    assert re.search(pattern, result.stdout + result.stderr), result.stdout + result.stderr


def test_every_check_is_tested_here() -> None:
    _, *checks = listing()
    accepted = {line.removeprefix("accepted ") for line in checks if line.startswith("accepted")}
    assert accepted == set(ACCEPTED)
    assert {line.split()[1] for line in checks} - accepted == {*WAITS, *RACES, *ADDRESSES}


@pytest.mark.parametrize("name", ACCEPTED)
def test_runs_to_the_right_result_in_any_order(name: str) -> None:
    listing()
    for seed in SEEDS:
        result = run(name, seed)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("name", WAITS)
def test_a_thread_that_does_not_come_is_named(name: str) -> None:
    listing()
    for seed in SEEDS:
        refused(name, f"{name}: .*{WAITS[name]}", seed)


@pytest.mark.parametrize("name", RACES)
def test_a_race_or_a_wrong_place_is_named(name: str) -> None:
    if "detects races" not in listing():
        pytest.skip("built with AddressSanitizer, which excludes the race detector")
    for seed in SEEDS:
        refused(name, f"{name}: ({RACES[name]}).*{PLACE}", seed)


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_wrong_address_is_found_by_the_sanitizers(name: str) -> None:
    if "detects addresses" not in listing():
        pytest.skip("built without AddressSanitizer")
    for seed in SEEDS:
        refused(name, ADDRESSES[name], seed)
