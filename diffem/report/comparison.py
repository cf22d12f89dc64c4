"""The report of a comparison of runs: a table in three formats, curves, and a page."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffem.metric import Score, read_scores
from diffem.report.comparison_page import CLEAN, clean_mark, write_comparison_page
from diffem.report.curves import AXES, mean_points, positions
from diffem.report.record import read_record, round_seconds
from diffem.report.verdict import expected_gap
from diffem.runtime.errors import UserError
from diffem.storage.atomic import write_text
from diffem.storage.figure import write_figure
from diffem.storage.run_dir import PAGE

Summary = dict[str, Any]
"""The content of a run's `summary.json`."""

Runs = Mapping[str, Mapping[int, Summary | None]]
"""For each row, the summaries of its seeds; None for a run that failed."""

Rounds = Sequence[Mapping[str, Any]]
"""The rows of `rounds` in `summary.json`."""


def write_comparison(out: Path, runs: Runs, title: str) -> list[Path]:
    """Writes table.md, table.csv (with details), table.tex, the curves and report.html.

    Arguments:
        out: The folder, which holds the runs as ROW/seed_SEED.
        runs: The runs' summaries.
        title: The study's name and the overrides of all runs, for the page.

    Returns:
        The files.

    Raises:
        UserError: If the runs are of an earlier version of diffem, without descriptions of scores,
            or the disk is full.
    """
    rows = table(runs)
    details = io.StringIO(newline="")
    csv.writer(details).writerows(table(runs, details=True))
    texts = {
        "table.md": markdown(table(runs, bold=True)),
        "table.csv": details.getvalue(),
        "table.tex": latex(rows),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    curves = save_comparison_curves(out, runs)
    write_comparison_page(
        out / PAGE,
        {
            row: {seed: read_record(out / row / f"seed_{seed}") for seed in seeds}
            for row, seeds in runs.items()
        },
        title=title or "default run",
        table=rows,
    )
    return [*(out / name for name in texts), *curves, out / PAGE]


# The table: a row for each set of overrides, mean ± standard deviation over seeds.


class Column(NamedTuple):
    """A column of the table."""

    score: Score
    """What it shows."""
    value: Callable[[Summary], float | None]
    """Returns the value of a run; None if it has none."""


def optimizer_steps(summary: Summary) -> float | None:
    """Returns the optimiser steps of all M-steps; None if they were not counted."""
    return summary["rounds"][-1].get("optimizer_steps")


def million_nfe(summary: Summary) -> float | None:
    """Returns the millions of network function evaluations; None if they were not counted."""
    count = summary["rounds"][-1].get("nfe")
    return None if count is None else count / 1e6


def em_seconds(summary: Summary) -> float:
    """Returns the seconds of all E- and M-steps."""
    return sum(round_seconds(row) for row in summary["rounds"])


COSTS = (
    Column(
        Score("rounds", "rounds", digits=1, detail=True),
        lambda summary: summary["rounds"][-1]["round"],
    ),
    Column(Score("optimizer_steps", "optimiser steps", digits=0), optimizer_steps),
    Column(Score("nfe", "NFE", unit="M", digits=2), million_nfe),
    Column(Score("em_seconds", "E+M time", unit="s", digits=1), em_seconds),
    Column(
        Score("seconds", "time", unit="s", digits=1, detail=True),
        lambda summary: summary["wall_seconds"],
    ),
)
FLOOR = Column(
    Score("init_psnr_mean", "posterior mean of the init", unit="dB", digits=2),
    lambda summary: summary["final"].get("init_psnr_mean"),
)
BESIDE_FLOOR = "psnr_mean"  # the score that the floor is comparable with


def sees_clean_images(summary: Summary) -> bool:
    """Returns whether a run learned from clean images, in its init or its M-steps."""
    return summary.get("clean_images", False)


def mean_and_deviation(values: Sequence[float], score: Score) -> str:
    """Returns "mean ± standard deviation", or the mean alone of one value, or of infinite ones."""
    mean = score.text(statistics.mean(values))
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return mean
    return f"{mean} ± {score.text(statistics.stdev(values))}"


def table(runs: Runs, *, bold: bool = False, details: bool = False) -> list[list[str]]:
    """Returns the header and the rows, as text.

    Arguments:
        runs: The runs' summaries.
        bold: Whether the best value of each score is set in bold, in Markdown. Rows that learn
            from clean images, marked †, are left out of this; a single row is never the best.
        details: Whether the columns of details are there too.

    Raises:
        UserError: If the runs are of an earlier version of diffem, without descriptions of scores.
    """
    done = _finished(runs)
    finished = [summary for summaries in done.values() for summary in summaries]
    floor = _common_floor(finished)
    columns = [
        column
        for column in _columns(finished, () if floor else (FLOOR,))
        if details or not column.score.detail
    ]
    lines = {}
    for row, seeds in runs.items():
        failed = len(seeds) - len(done[row])
        count = f"{len(done[row])}" + (f" ({failed} failed)" if failed else "")
        lines[row] = [row, *(_text(column, done[row]) for column in columns), count]
    competing = {row: d for row, d in done.items() if not any(map(sees_clean_images, d))}
    if bold:
        for i, column in enumerate(columns, start=1):
            for row in _best(column, competing):
                lines[row][i] = f"**{lines[row][i]}**"
    for row in done.keys() - competing.keys():
        lines[row][0] += f" {CLEAN}"
    rows = [["row", *(column.score.title for column in columns), "seeds"], *lines.values()]
    if floor:
        text = mean_and_deviation(floor, FLOOR.score)
        cells = [text if c.score.name == BESIDE_FLOOR else "–" for c in columns]
        rows.append([FLOOR.score.label, *cells, f"{len(floor)}"])
    return rows


def _finished(runs: Runs) -> dict[str, list[Summary]]:
    """Returns the summaries of each row's finished runs."""
    return {row: [s for s in seeds.values() if s is not None] for row, seeds in runs.items()}


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    lines = "".join("| " + " | ".join(row) + " |\n" for row in ruled)
    return lines + (f"\n{CLEAN} learns from clean images.\n" if clean_mark(rows) else "")


def latex(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in LaTeX."""
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in rows]
    head = rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}"
    return "\n".join([head, *lines, r"\end{tabular}"]) + "\n"


def described_scores(finished: Sequence[Summary]) -> list[Score]:
    """Returns the scores that the runs describe.

    Raises:
        UserError: If there are runs, and none describes any.
    """
    scores = read_scores(finished)
    if finished and not scores:
        raise UserError(
            "the runs of this comparison were written by diffem 0.1, whose summary.json does not "
            "describe its scores; choose another --out"
        )
    return scores


def _columns(finished: Sequence[Summary], extra: Sequence[Column]) -> list[Column]:
    """Returns the columns that some run has a value for: the mean of samples comes first."""
    shown = [score for score in described_scores(finished) if score.digits is not None]
    final = [Column(s, _final(s.name)) for s in sorted(shown, key=lambda s: not s.of_mean)]
    beside = next((i for i, c in enumerate(final, start=1) if c.score.name == "psnr"), None)
    if beside is not None:
        final.insert(beside, _gap(finished))
    prior = [Column(replace(s, label=f"prior {s.label}"), _prior(s.name)) for s in shown]
    names = dict.fromkeys(k for s in finished for k in s["rounds"][-1].get("estimate") or {})
    estimated = [Column(Score(name, f"estimated {name}"), _estimate(name)) for name in names]
    columns = (*final, *prior, *extra, *estimated, *COSTS)
    return [c for c in columns if not finished or any(c.value(s) is not None for s in finished)]


def _gap(finished: Sequence[Summary]) -> Column:
    """Returns the column of how far a sample is below the mean of several.

    Its heading has the gap of the true posterior where all runs draw as many samples: a smaller
    one means that samples spread less than they err.
    """
    numbers = {summary.get("samples") for summary in finished}
    expected, unit = numbers.pop() if len(numbers) == 1 else None, "dB"
    if isinstance(expected, int) and expected > 1:
        unit = f"dB; true posterior: {expected_gap(expected):.2f}"

    def value(summary: Summary) -> float | None:
        mean, sample = summary["final"].get("psnr_mean"), summary["final"].get("psnr")
        return None if mean is None or sample is None else mean - sample

    return Column(Score("gap", "gap", unit=unit, digits=2), value)


def _final(name: str) -> Callable[[Summary], float | None]:
    return lambda summary: summary["final"].get(name)


def _prior(name: str) -> Callable[[Summary], float | None]:
    return lambda summary: (summary["final"].get("prior") or {}).get(name)


def _estimate(name: str) -> Callable[[Summary], float | None]:
    return lambda summary: (summary["rounds"][-1].get("estimate") or {}).get(name)


def _known(column: Column, done: Sequence[Summary]) -> list[float]:
    return [value for value in map(column.value, done) if value is not None]


def _text(column: Column, done: Sequence[Summary]) -> str:
    known = _known(column, done)
    return mean_and_deviation(known, column.score) if known else "–"


def _best(column: Column, done: Mapping[str, Sequence[Summary]]) -> list[str]:
    """Returns the rows whose mean is the best to the digits shown."""
    if column.score.better is None:
        return []
    known = {row: _known(column, summaries) for row, summaries in done.items()}
    digits = column.score.digits
    means = {row: round(statistics.mean(v), digits) for row, v in known.items() if v}
    better: Callable[[Iterable[float]], float] = max if column.score.better == "higher" else min
    best = better(means.values()) if len(means) > 1 else None
    return [row for row, mean in means.items() if mean == best]


def _common_floor(finished: Sequence[Summary]) -> list[float]:
    """Returns each seed's posterior mean of the init.

    It is empty if the rows have different measurements, or no score to compare the mean with.
    """
    floors: dict[int, set[float]] = {}
    for summary in finished:
        if (floor := FLOOR.value(summary)) is not None:
            floors.setdefault(summary["seed"], set()).add(round(floor, FLOOR.score.digits))
    compared = any(BESIDE_FLOOR in summary["final"] for summary in finished)
    if not compared or any(len(values) > 1 for values in floors.values()):
        return []
    return [value for values in floors.values() for value in values]


def _latex(cell: str) -> str:
    for old, new in (
        ("_", r"\_"),
        (CLEAN, r"$\dagger$"),
        ("±", r"$\pm$"),
        ("χ²", r"$\chi^2$"),
        ("–", "--"),
    ):
        cell = cell.replace(old, new)
    return cell


# The curves: the scores of each round over rounds, seconds and network function evaluations.

WIDE = 3  # panels in a row of a figure
CURVES = {"round": "rounds.png", "time": "compute.png", "nfe": "nfe.png"}


def save_comparison_curves(out: Path, runs: Runs) -> list[Path]:
    """Saves rounds.png, compute.png and, if all runs counted their NFE, nfe.png.

    Arguments:
        out: The folder of the comparison.
        runs: The runs' summaries.

    Returns:
        The files.
    """
    done = _finished(runs)
    scores = described_scores([s for summaries in done.values() for s in summaries])
    rounds = {row: [s["rounds"] for s in summaries] for row, summaries in done.items()}
    files = []
    for axis, name in CURVES.items():
        (out / name).unlink(missing_ok=True)  # of a smaller comparison in the same folder
        if all(positions(run, axis) is not None for row in rounds.values() for run in row):
            _save_curves(out / name, rounds, scores, axis)
            files.append(out / name)
    return files


def _save_curves(
    path: Path,
    runs: Mapping[str, Sequence[Rounds]],
    scores: Sequence[Score],
    axis: str,
) -> None:
    """Saves one figure: a panel for each score that the rounds of a run have, a line for a row."""
    rounds = [round for row in runs.values() for run in row for round in run]
    shown = [s for s in scores if any(round.get(s.name) is not None for round in rounds)]
    columns = min(max(len(shown), 1), WIDE)
    lines = max(math.ceil(len(shown) / columns), 1)
    figure = Figure(figsize=(3.4 * columns + 1.6, 2.6 * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for plot, score in zip(grid, shown, strict=False):
        for i, (row, of_row) in enumerate(runs.items()):
            _draw(plot, of_row, score.name, axis, (row, i))
        plot.set(ylabel=score.title, xlabel=AXES[axis])
        if score.expected is not None:
            # χ² is in the hundreds after an init that ignores the measurements.
            plot.set_yscale("log")
            plot.axhline(score.expected, color="grey", linewidth=0.8, linestyle="--")
    for plot in figure.axes[len(shown) :]:
        plot.set_axis_off()
    if handles := figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(handles=handles, loc="outside right upper", fontsize=7)
    write_figure(path, figure)


def _draw(plot: Axes, runs: Sequence[Rounds], name: str, axis: str, row: tuple[str, int]) -> None:
    """Draws a row's mean over its seeds, of the rounds in which all of them have the score."""
    means = mean_points(runs, name, axis)
    if not means:
        return
    x, y = np.transpose(means)
    label, i = row
    line = ("-", "--", ":")[i // 10 % 3]
    plot.plot(x, y, line, color=f"C{i % 10}", marker="o", markersize=3, label=label)
