"""The curves of a comparison: metrics of each round over rounds, seconds, network evaluations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffem.report.table import Runs

Rounds = Sequence[dict[str, Any]]
"""The rows of `summary.json`'s `rounds`."""

Axis = Callable[[Rounds], list[float] | None]
"""Returns where each round stands on an axis; None if a run does not know."""

PANELS = {
    "psnr_mean": "PSNR of mean (dB), training",
    "residual_chi2": "residual χ²",
    "diversity": "diversity",
}


def save_comparison_curves(out: Path, runs: Runs) -> list[Path]:
    """Saves rounds.png, compute.png and, if all runs counted them, nfe.png.

    Returns:
        The files.
    """
    finished = {
        row: [s["rounds"] for s in seeds.values() if s is not None] for row, seeds in runs.items()
    }
    axes: dict[str, tuple[str, Axis]] = {
        "rounds.png": ("round", lambda rounds: _values(rounds, "round")),
        "compute.png": ("seconds of E- and M-steps", _seconds),
        "nfe.png": ("NFE (images through the network)", _nfe),
    }
    files = []
    for name, (label, axis) in axes.items():
        (out / name).unlink(missing_ok=True)  # of a smaller comparison in the same folder
        if all(axis(rounds) is not None for row in finished.values() for rounds in row):
            _save(out / name, finished, label, axis)
            files.append(out / name)
    return files


def _save(path: Path, finished: dict[str, list[Rounds]], label: str, axis: Axis) -> None:
    """Saves one figure: a panel for each metric that a run has, a line a row."""
    rounds = [round for row in finished.values() for run in row for round in run]
    known = [key for key in PANELS if any(round.get(key) is not None for round in rounds)]
    panels = known or ["psnr_mean"]
    figure = Figure(figsize=(7, 2.6 * len(panels) + 0.4), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for plot, key in zip(grid, panels, strict=True):
        for i, (row, runs) in enumerate(finished.items()):
            _draw(plot, runs, key, axis, (row, i))
        plot.set_ylabel(PANELS[key], fontsize=8)
        if key == "residual_chi2":
            plot.axhline(1, color="grey", linewidth=0.8, linestyle="--")
            plot.set_yscale("log")  # an init that ignores the measurements is in the hundreds
    grid[-1].set_xlabel(label)
    if handles := grid[0].get_legend_handles_labels()[0]:
        figure.legend(handles=handles, loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=150)


def _draw(plot: Axes, runs: Sequence[Rounds], key: str, axis: Axis, row: tuple[str, int]) -> None:
    """Draws a row's mean over its seeds, as far as the shortest of them goes."""
    lines = []
    for rounds in runs:
        points = zip(axis(rounds) or [], rounds, strict=True)
        lines.append([(x, round[key]) for x, round in points if round.get(key) is not None])
    means = [np.mean(points, axis=0) for points in zip(*filter(None, lines), strict=False)]
    if not means:
        return
    x, y = np.transpose(means)
    name, i = row
    line = ("-", "--", ":")[i // 10 % 3]
    plot.plot(x, y, line, color=f"C{i % 10}", marker="o", markersize=3, label=name)


def _values(rounds: Rounds, key: str) -> list[float] | None:
    values = [row[key] for row in rounds if row.get(key) is not None]
    return values if len(values) == len(rounds) else None


def _seconds(rounds: Rounds) -> list[float]:
    total, seconds = 0.0, []
    for row in rounds:
        total += row["e_step_seconds"] + row["m_step_seconds"]
        seconds.append(total)
    return seconds


def _nfe(rounds: Rounds) -> list[float] | None:
    return _values(rounds, "nfe")
