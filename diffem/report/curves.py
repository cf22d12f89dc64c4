"""Curves of scores over the rounds of a run, or of the runs of a comparison."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffem.metric import Score
from diffem.metric.energy import HIDDEN_ENTRIES, HIDDEN_MSE
from diffem.report.chart import Chart, Series, svg
from diffem.report.figures import LOSS
from diffem.report.record import RunRecord, round_seconds

AXES = {
    "round": "round",
    "time": "seconds of E- and M-steps",
    "nfe": "NFE (images through the network)",
}
"""What curves are over, and what the axis is called."""

Row = Mapping[str, Any]


def positions(rounds: Sequence[Row], axis: str) -> list[float] | None:
    """Returns the position of each round on an axis; None if a round has none that is a number.

    Arguments:
        rounds: The rows of the rounds.
        axis: A key of `AXES`.
    """
    if axis == "time":
        total, seconds = 0.0, []
        for row in rounds:
            total += round_seconds(row)
            seconds.append(total)
        return seconds if all(map(math.isfinite, seconds)) else None
    values = [row[axis] for row in rounds if isinstance(row.get(axis), int | float)]
    return values if len(values) == len(rounds) else None


def shown_scores(record: RunRecord) -> list[Score]:
    """Returns the scores that a run describes, and those that each run has."""
    described = record.scores
    names = {score.name for score in described}
    return [
        *described,
        *(score for score in (HIDDEN_ENTRIES, HIDDEN_MSE, LOSS) if score.name not in names),
    ]


def run_charts(record: RunRecord) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Returns the charts of a run's scores over its rounds, and the axes that they are over."""
    rounds, truth = record.rounds, record.summary.get("truth") or {}
    at = {axis: positions(rounds, axis) or [] for axis in AXES}
    axes = {axis: label for axis, label in AXES.items() if at[axis]}
    charts = []
    for score in shown_scores(record):
        lines = _expected(score)
        if isinstance(value := truth.get(score.name), int | float):
            lines.append(("true images", value))
        series = {axis: [_series(at[axis], rounds, score.name)] for axis in axes}
        charts += _chart(score, lines, series)
    return charts, axes


def comparison_charts(
    runs: Mapping[str, Sequence[RunRecord]],
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Returns a chart for each score, with a line for each row, and the axes.

    Arguments:
        runs: The runs of each row of the comparison.
    """
    rounds = {row: [record.rounds for record in records] for row, records in runs.items()}
    every = [of_run for of_row in rounds.values() for of_run in of_row]
    axes = {
        axis: label
        for axis, label in AXES.items()
        if every and all(positions(of_run, axis) for of_run in every)
    }
    scores: dict[str, Score] = {}
    for record in (record for records in runs.values() for record in records):
        for score in shown_scores(record):
            scores.setdefault(score.name, score)
    charts = []
    for score in scores.values():
        series = {
            axis: [
                Series(row, mean_points(of_row, score.name, axis), i)
                for i, (row, of_row) in enumerate(rounds.items())
            ]
            for axis in axes
        }
        charts += _chart(score, _expected(score), series)
    return charts, axes


def mean_points(
    runs: Sequence[Sequence[Mapping[str, Any]]], name: str, axis: str
) -> list[tuple[float, float]]:
    """Returns the mean of several runs' points, of the rounds in which all of them have the score.

    Arguments:
        runs: The rows of the rounds of each run.
        name: The score.
        axis: The axis of its points, a key of `AXES`.
    """
    lines: list[dict[int, tuple[float, float]]] = []
    for rounds in runs:
        points = zip(positions(rounds, axis) or [], rounds, strict=True)
        lines.append(
            {row["round"]: (x, row[name]) for x, row in points if row.get(name) is not None}
        )
    known = list(filter(None, lines))
    common = [k for k in known[0] if all(k in line for line in known)] if known else []
    means = [np.mean([line[k] for line in known], axis=0) for k in common]
    return [(float(x), float(y)) for x, y in means]


def _chart(
    score: Score, lines: Sequence[tuple[str, float]], series: Mapping[str, Sequence[Series]]
) -> list[dict[str, Any]]:
    """Returns a score's chart as the templates show it; nothing if there is no point in it.

    Arguments:
        score: The score.
        lines: Values to compare with, as of `Chart`.
        series: The lines over each axis, a key of `AXES`.
    """
    drawings = {}
    for axis, of_axis in series.items():
        if drawing := svg(Chart(score.title, AXES[axis], of_axis, lines, score.digits)):
            drawings[axis] = drawing
    note = "" if score.better is None else f"{score.better} is better"
    return [{"title": score.title, "note": note, "drawings": drawings}] if drawings else []


def _expected(score: Score) -> list[tuple[str, float]]:
    """Returns the line at a score's expectation, where it is known."""
    return [] if score.expected is None else [("expected", score.expected)]


def _series(at: Sequence[float], rounds: Sequence[Row], name: str) -> Series:
    """Returns the line of a score, with its standard errors where the rounds have them."""
    given = zip(at, rounds, strict=True)
    pairs = [(x, row) for x, row in given if isinstance(row.get(name), int | float)]
    errors = [row.get(f"{name}_error") for _, row in pairs]
    known = [float(e) if isinstance(e, int | float) else None for e in errors]
    return Series("", [(x, row[name]) for x, row in pairs], errors=known)
