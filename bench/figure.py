"""A figure: the ratio of two things that are measured alternately, side by side, in one run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

TOLERANCE = 0.1
"""How much worse than the baseline a figure may be, as a fraction."""


@dataclass(frozen=True)
class Figure:
    """A ratio, measured several times.

    Neighbouring measurements share what else the machine does, so that their ratio says more than
    seconds that were measured on another day.
    """

    name: str
    """Its name in the JSON files."""
    title: str
    """What is divided by what."""
    pairs: Sequence[tuple[float, float]]
    """The numerator and the denominator of each alternation."""
    unit: str = "s"
    """Of the numerator and the denominator."""
    limit: float | None = None
    """What the ratio has to stay below, or above; None for no limit."""
    more_is_better: bool = False
    """Whether a larger ratio is the better one."""

    @property
    def ratios(self) -> list[float]:
        """The ratio of each alternation."""
        return [above / below for above, below in self.pairs]

    @property
    def median(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def within_limit(self) -> bool:
        """Whether the median keeps the limit."""
        if self.limit is None:
            return True
        return self.median >= self.limit if self.more_is_better else self.median <= self.limit

    def record(self) -> dict[str, Any]:
        """Returns the figure in plain types, as the JSON files have it."""
        above, below = zip(*self.pairs, strict=True)
        return {
            "title": self.title,
            "median": self.median,
            "min": min(self.ratios),
            "max": max(self.ratios),
            "limit": self.limit,
            "within_limit": self.within_limit,
            "more_is_better": self.more_is_better,
            "unit": self.unit,
            "numerator": median(above),
            "denominator": median(below),
            "alternations": len(self.pairs),
        }


@dataclass(frozen=True)
class LeftOut:
    """A figure that cannot be measured here."""

    name: str
    """The figure's name."""
    reason: str
    """Why not."""


def alternate(
    above: Callable[[], float], below: Callable[[], float], times: int
) -> list[tuple[float, float]]:
    """Measures two things alternately; every other time the second one first.

    Arguments:
        above: Measures the numerator, and returns it.
        below: Measures the denominator, and returns it.
        times: The number of alternations.
    """
    pairs = []
    for i in range(times):
        if i % 2:
            second = below()
            pairs.append((above(), second))
        else:
            first = above()
            pairs.append((first, below()))
    return pairs


def seconds(run: Callable[[], object]) -> float:
    """Returns the wall time that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
