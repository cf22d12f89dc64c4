"""Scores: how the numbers that a run computes are named, shown and compared."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from types import UnionType
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Score:
    """A number that a run computes; tables, curves and figures show it as it is described here.

    The run writes the descriptions of its scores to `summary.json`, so that a comparison of runs
    needs nothing else to show them.
    """

    name: str
    """Its key in `summary.json`."""
    label: str
    """What tables and figures call it."""
    unit: str = ""
    """Its unit, as in "dB"; empty if it has none."""
    heading: str = ""
    """Its heading in the narrow table of a run or a sweep; empty leaves it out of that table."""
    digits: int | None = 3
    """Digits after the decimal point in tables; None leaves it out of them."""
    better: Literal["higher", "lower"] | None = None
    """Which values are better; None if neither are."""
    expected: float | None = None
    """Its expectation if the reconstructions are samples of the true posterior, where it is known;
    curves show it as a dashed line."""
    images: int = 1
    """The smallest number of reconstructions, and of true images, that it is defined for."""
    of_mean: bool = False
    """Whether it is of the mean of several samples, and not of one sample."""
    detail: bool = False
    """Whether a comparison has it in table.csv alone, and not in the tables that are read."""

    @property
    def title(self) -> str:
        """The label with the unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float | None) -> str:
        """Returns a value as tables and titles show it."""
        if value is None:
            return "–"
        return f"{value:.4g}" if self.digits is None else f"{value:.{self.digits}f}"

    def of_the_mean(self) -> Self:
        """Returns the description of the same score of the mean of several samples."""
        name, label = f"{self.name}_mean", f"{self.label} of mean"
        heading = "of mean" if self.heading else ""
        return replace(self, name=name, label=label, heading=heading, of_mean=True)


def describe_scores(scores: Iterable[Score]) -> dict[str, dict[str, Any]]:
    """Returns descriptions for `summary.json`, which `read_scores` reads: {name: fields}."""
    fields = {score.name: asdict(score) for score in scores}
    return {name: {k: v for k, v in f.items() if k != "name"} for name, f in fields.items()}


TYPES: dict[str, type | UnionType] = {
    "label": str,
    "unit": str,
    "heading": str,
    "digits": int | None,
    "better": str | None,
    "expected": int | float | None,
    "images": int,
    "of_mean": bool,
    "detail": bool,
}
"""The types of the fields of a description."""


def is_description(fields: object) -> bool:
    """Returns whether a value is what `describe_scores` gives of a score."""
    return (
        isinstance(fields, dict)
        and "label" in fields
        and fields.keys() <= TYPES.keys()
        and all(isinstance(value, TYPES[key]) for key, value in fields.items())
        and not isinstance(fields.get("digits"), bool)
        and 0 <= (fields.get("digits") or 0) <= 20
    )


def read_scores(summaries: Iterable[Mapping[str, Any]]) -> list[Score]:
    """Returns the scores that the summaries of runs describe, each once.

    Arguments:
        summaries: The contents of `summary.json` files. One of an earlier version of diffem
            describes no scores.
    """
    described: dict[str, Score] = {}
    for summary in summaries:
        for name, fields in summary.get("metrics", {}).items():
            described.setdefault(name, Score(name, **fields))
    return list(described.values())
