"""From what pytest-benchmark wrote to rows, and from rows to text: table, README, comparison.

A report is {"environment": {...}, "rows": [...]}. A row is one contender of one race:

    case, title, shape, contender   what ran
    kind                            "backend" (ours) or "peer"
    default, baseline               the backend that "auto" takes; the peer of the ratio
    pixels                          of one image, or null
    reason                          why it was not timed; then nothing below is there
    median_s, p20_s, p80_s, calls   time of a call, and how many were timed
    ratio                           baseline's median / median: above 1 is faster than the baseline
    gb_per_s                        bytes of inputs and results, once, by the median
    peak_bytes                      peak memory of a call above what was in use before
    check                           how far the result is from the reference's
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import linear_regression, median, quantiles
from typing import Any

Row = dict[str, Any]
Report = dict[str, Any]

START, END = "<!-- benchmark:start -->", "<!-- benchmark:end -->"
HEADER = ("", "median", "p20 - p80", "ratio", "GB/s", "peak", "apart")
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
SCALING = "scaling"  # the case whose rows differ in size only


def from_pytest(document: dict[str, Any]) -> Report:
    """The report of one run of the cases, from pytest-benchmark's JSON."""
    rows = [_timed(b["extra_info"], b["stats"]["data"]) for b in document["benchmarks"]]
    baseline = {_race(row): row["median_s"] for row in rows if row["baseline"]}
    for row in rows:
        base = baseline.get(_race(row))
        row["ratio"] = base / row["median_s"] if base else None
    rows += document["untimed"]
    for row in rows:
        del row["traffic_bytes"]
    return {"environment": document["machine_info"]["maskformer_fast"], "rows": rows}


def _timed(row: Row, times: Sequence[float]) -> Row:
    middle, fifths = median(times), quantiles(times, n=5, method="inclusive")
    traffic = row["traffic_bytes"]
    return row | {
        "median_s": middle,
        "p20_s": fifths[0],
        "p80_s": fifths[-1],
        "calls": len(times),
        "gb_per_s": traffic / middle / 1e9 if traffic else None,
    }


def _race(row: Row) -> tuple[str, str, str]:
    return row["case"], row["title"], row["shape"]


def races(report: Report) -> list[list[Row]]:
    """The rows, one list for each race: baseline, then what "auto" takes, then the others."""
    rows = sorted(report["rows"], key=lambda r: (not r["baseline"], not r["default"]))
    grouped = defaultdict(list)
    for row in rows:
        grouped[_race(row)].append(row)
    return [grouped[key] for key in dict.fromkeys(map(_race, report["rows"]))]


# --- the table --------------------------------------------------------------------------------


def table(report: Report) -> str:
    """Every row, those where we lose and those that were not timed too."""
    lines: list[tuple[str, ...]] = [HEADER]
    for rows in races(report):
        lines.append((f"\n{rows[0]['title']}  {rows[0]['shape']}",))
        lines += map(_cells, rows)
    whole = [line for line in lines if len(line) == len(HEADER)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    text = ("  ".join(map(_align, line, widths, range(len(line)))).rstrip() for line in lines)
    notes = [
        "ratio: baseline / median, above 1 is faster; * what backend='auto' takes; = baseline",
        "peak: memory of a call above what was in use; apart: difference from the reference",
    ]
    return "\n".join([summary(report), "", *text, "", *exponents(report), *notes])


def summary(report: Report) -> str:
    """The environment in one line."""
    where = report["environment"]
    versions = [f"{name} {version}" for name, version in where["versions"].items()]
    parts = [where["device"], f"{where['threads']} threads", where["instruction_set"]]
    return ", ".join([*filter(None, parts), *versions, f"commit {where['commit']}"])


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def _cells(row: Row) -> tuple[str, ...]:
    mark = "=" if row["baseline"] else "*" if row["default"] else " "
    name = f"  {mark} {row['contender']}"
    if "reason" in row:
        return (f"{name}: {row['reason']}",)
    return (
        name,
        seconds(row["median_s"]),
        f"{seconds(row['p20_s'])} - {seconds(row['p80_s'])}",
        times_faster(row["ratio"]),
        "" if row["gb_per_s"] is None else f"{row['gb_per_s']:.3g}",
        megabytes(row["peak_bytes"]),
        row["check"],
    )


def seconds(value: float) -> str:
    scale, unit = next((u for u in UNITS if value >= u[0]), UNITS[-1])
    return f"{value / scale:.3g} {unit}" if value < 1000 * scale else f"{value:.0f} s"


def megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.1f} MB"


def times_faster(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def series(report: Report) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Of the case "scaling", by title and contender: (pixels, median seconds), ascending."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in report["rows"]:
        if row["case"] == SCALING and "reason" not in row:
            found[row["title"]][row["contender"]].append((row["pixels"], row["median_s"]))
    return {title: {k: sorted(v) for k, v in lines.items()} for title, lines in found.items()}


def exponents(report: Report) -> list[str]:
    """How time grows: the e of time ~ pixels^e, fitted over the sizes."""
    lines = []
    for title, contenders in series(report).items():
        slopes = [f"{name} {_slope(points):.2f}" for name, points in contenders.items()]
        lines.append(f"{title}: time ~ pixels^e, e = {', '.join(slopes)}")
    return lines


def _slope(points: list[tuple[int, float]]) -> float:
    logarithms = ([math.log(value) for value in column] for column in zip(*points, strict=True))
    return linear_regression(*logarithms).slope


# --- the README -------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """What users get, against what they have: one line a race. Ratios, as CPUs are shared."""
    lines = [
        "| step | shape | against | times faster | peak memory, ours / theirs |",
        "| --- | --- | --- | ---: | ---: |",
    ]
    for rows in races(report):
        ours = next((row for row in rows if row["default"] and "reason" not in row), None)
        theirs = next((row for row in rows if row["baseline"] and "reason" not in row), None)
        if ours is None or theirs is None or ours["case"] == SCALING:
            continue
        memory = f"{megabytes(ours['peak_bytes'])} / {megabytes(theirs['peak_bytes'])}"
        cells = (ours["title"], ours["shape"], theirs["contender"], times_faster(ours["ratio"]))
        lines.append(f"| {' | '.join((*cells, memory))} |")
    return "\n".join([*lines, "", f"Measured on {summary(report)}."])


def replace_between_markers(text: str, new: str) -> str:
    """`text` with `new` between START and END. Raises ValueError where they are missing."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"expected a line {START} and, after it, a line {END}")
    return f"{before}{START}\n{new}\n{END}{after}"


# --- comparison with an old report ------------------------------------------------------------


def changes(old: Report, new: Report) -> list[tuple[Row, float | None]]:
    """Our rows that the old report has timed, each with new time / old time.

    Where both reports timed the baseline, it is the change of the ratio to it, so that a machine
    that is slower today does not count. None: it was timed then and is not now.
    """
    before = {(*_race(row), row["contender"]): row for row in old["rows"] if "reason" not in row}
    found = []
    for row in new["rows"]:
        then = before.get((*_race(row), row["contender"]))
        if then is None or row["kind"] != "backend":
            continue
        if "reason" in row:
            found.append((row, None))
        elif then["ratio"] and row["ratio"]:
            found.append((row, then["ratio"] / row["ratio"]))
        else:
            found.append((row, row["median_s"] / then["median_s"]))
    return found


def comparison(old: Report, new: Report) -> str:
    """The changes as text, one line each."""
    lines = [f"before: {summary(old)}"]
    for row, change in changes(old, new):
        text = "not timed now" if change is None else f"{change - 1:+.0%} time"
        lines.append(f"  {text:>14}  {row['title']}  {row['shape']}  {row['contender']}")
    return "\n".join(lines if len(lines) > 1 else [*lines, "  nothing in common"])


def slower(old: Report, new: Report, limit: float) -> list[Row]:
    """Our rows that take more than (1 + limit) of the old time, or are not timed any more."""
    return [row for row, change in changes(old, new) if change is None or change > 1 + limit]
