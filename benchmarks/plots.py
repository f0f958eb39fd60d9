"""Two pictures of a report: how many times faster, and time against size."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from report import SCALING, Report, Row, races, series, times_faster

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "maskformer_fast"  # the same report gives the same file
mpl.rcParams["svg.fonttype"] = "none"  # text stays text

import matplotlib.pyplot as plt  # noqa: E402

WIN, LOSS = "#2a7f62", "#b3432b"
BAR_HEIGHT = 0.4  # inches
METADATA = {"Date": None}


def speedups(report: Report, path: Path) -> None:
    """A bar a race: the baseline's time over that of what "auto" takes; losses point left."""
    ours = _compared(report)
    labels = [f"{row['title']}\n{row['shape']}" for row in ours]
    ratios = [row["ratio"] for row in ours]
    figure, axes = plt.subplots(figsize=(10, 1 + BAR_HEIGHT * len(ours)), layout="constrained")
    bars = axes.barh(
        range(len(ours)),
        [ratio - 1 for ratio in ratios],
        left=1,
        color=[WIN if ratio > 1 else LOSS for ratio in ratios],
    )
    axes.bar_label(bars, [times_faster(ratio) for ratio in ratios], padding=3)
    axes.set_yticks(range(len(ours)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="times faster than the baseline")
    axes.axvline(1, color="black", linewidth=1)
    axes.margins(x=0.15)
    figure.savefig(path, metadata=METADATA)
    plt.close(figure)


def _compared(report: Report) -> list[Row]:
    """Of each race what "auto" takes, where the baseline was timed too."""
    rows = (row for rows in races(report) for row in rows if row["default"])
    return [row for row in rows if row.get("ratio") and row["case"] != SCALING]


def scaling(report: Report, path: Path) -> None:
    """Time against pixels, both logarithmic: a step that is linear rises by one in one."""
    found = series(report)
    figure, grid = plt.subplots(
        1, len(found), figsize=(4.5 * len(found), 4), layout="constrained", squeeze=False
    )
    for axes, (title, contenders) in zip(grid[0], found.items(), strict=True):
        for name, points in contenders.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(xscale="log", yscale="log", title=title, xlabel="pixels", ylabel="seconds")
        axes.legend()
    figure.savefig(path, metadata=METADATA)
    plt.close(figure)


def write(report: Report, results: Path) -> list[Path]:
    """Both pictures beside the JSON file `results`, where there is something to show."""
    written = []
    for name, draw, present in (
        ("speedup", speedups, bool(_compared(report))),
        ("scaling", scaling, bool(series(report))),
    ):
        if present:
            path = results.with_suffix(f".{name}.svg")
            draw(report, path)
            written.append(path)
    return written
