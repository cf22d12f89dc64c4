"""Line charts and scatter plots as SVG, drawn in the colours of the page that they are on.

A library for charts in the browser is hundreds of kilobytes of script in each page, and draws
nothing where scripts are off. These are a few kilobytes each; ticks are matplotlib's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH, HEIGHT = 320, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 8, 34
COLOURS = 8  # that the page's style sheet has, as --line-0 and so on
DASHES = ("", "6 3", "2 3")
SPAN = 10.0  # the ratio of values from which a score with an expectation is on a log scale
CLOSE = 0.05  # of the range, around it
LARGEST = 1e200  # differences and ticks of larger values are no numbers: they are drawn here


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    """The number of its colour; after the last one they begin again, dashed."""
    errors: Sequence[float | None] = ()
    """The standard error of each point, if there are any; None where it is not known."""

    @property
    def bars(self) -> list[tuple[float, float, float]]:
        """The place of each point whose error is known, and the ends of its bar."""
        known = zip(self.points, self.errors, strict=False)
        return [(x, y - error, y + error) for (x, y), error in known if error is not None]


@dataclass(frozen=True)
class Chart:
    """What a chart shows."""

    title: str
    """What its y axis is of; also what a screen reader says of it, with first and last value."""
    x_label: str
    series: Sequence[Series]
    lines: Sequence[tuple[str, float]] = field(default_factory=tuple)
    """Values to compare with, drawn dashed across: what each is, and the value."""
    digits: int | None = None
    """Digits after the decimal point of a value; None for four significant ones."""

    @property
    def log(self) -> bool:
        """Whether y is on a log scale: χ² is in the hundreds after an init that ignores y."""
        values = [y for s in self.series for _, y in s.points]
        if not self.lines or not values or min(values) <= 0:
            return False
        return max(values) > SPAN * min(values)

    def text(self, value: float) -> str:
        """Returns a value as the chart's texts show it."""
        return f"{value:.4g}" if self.digits is None else f"{value:.{self.digits}f}"


def svg(chart: Chart) -> str:
    """Returns a chart as an SVG element; an empty text if there is no point in it."""
    points = [point for series in chart.series for point in series.points]
    if not points:
        return ""
    xs = [x for x, _ in points]
    ys = [y for _, y in points] + [value for _, value in chart.lines]
    ys += [end for series in chart.series for _, *ends in series.bars for end in ends]
    x_axis = _Axis(xs, LEFT, WIDTH - RIGHT, whole=chart.x_label == "round")
    y_axis = _Axis(ys, HEIGHT - BOTTOM, TOP, log=chart.log and min(ys) > 0)
    parts = [*_grid(chart, x_axis, y_axis)]
    for label, value in chart.lines:
        y = y_axis(value)
        text = escape(f"{label}: {chart.text(value)}")
        parts.append(
            f'<g class="expected"><title>{text}</title>'
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/></g>'
        )
    for series in chart.series:
        parts.append(_line(chart, series, x_axis, y_axis))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_spoken(chart))}">'
        f"{''.join(parts)}</svg>"
    )


def scatter(points: np.ndarray, truth: np.ndarray | None, label: str, half: float) -> str:
    """Returns a scatter plot as an SVG element.

    Arguments:
        points: The points, (n, 2).
        truth: Points below them, (m, 2); None for none.
        label: What a screen reader says of it.
        half: Half of the length of an axis, around 0.
    """
    side = 320
    parts = []
    for name, cloud in (("truth", truth), ("points", points)):
        if cloud is None:
            continue
        placed = (side / 2 * (1 + np.nan_to_num(cloud) / half * np.array([1, -1]))).clip(0, side)
        marks = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in placed)
        parts.append(f'<path class="{name}" d="{marks}"/>')
    return (
        f'<svg class="scatter" viewBox="-4 -4 {side + 8} {side + 8}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


class _Axis:
    """Places values along an axis.

    Arguments:
        values: All values that are shown.
        start: Where the lowest value is, in the units of the SVG.
        end: Where the highest value is.
        log: Whether the scale is logarithmic.
        whole: Whether ticks are whole numbers.
    """

    def __init__(
        self,
        values: Sequence[float],
        start: float,
        end: float,
        *,
        log: bool = False,
        whole: bool = False,
    ) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = (_drawn(end) for end in (min(values), max(values)))
        if not whole and not log:
            margin = CLOSE * (high - low) or 0.1 * abs(high) or 1.0
            low, high = low - margin, high + margin
        elif log:
            low, high = low / 1.1, high * 1.1
        elif low == high:
            low, high = low - 0.5, high + 0.5
        locator = LogLocator() if log else MaxNLocator(4, integer=whole)
        found = [float(tick) for tick in locator.tick_values(low, high)]
        self.low, self.high = low, high
        self.ticks = [tick for tick in found if low <= tick <= high] or [low, high]

    def __call__(self, value: float) -> float:
        """Returns where a value is, in the units of the SVG."""
        low, high, at = self.low, self.high, _drawn(value)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (at - low) / (high - low)


def _drawn(value: float) -> float:
    return max(-LARGEST, min(value, LARGEST))


def _grid(chart: Chart, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    """Returns the lines and the numbers of the axes."""
    parts = []
    for tick in y_axis.ticks:
        y = y_axis(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{_tick(tick)}</text>')
    for tick in x_axis.ticks:
        text = f'<text x="{x_axis(tick):.1f}" y="{HEIGHT - 18}" class="middle">'
        parts.append(f"{text}{_tick(tick)}</text>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = escape(chart.x_label)
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" class="middle label">{label}</text>')
    return parts


def _line(chart: Chart, series: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    """Returns a line with a mark at each point, which says its value."""
    if not series.points:
        return ""
    placed = [(x_axis(x), y_axis(y)) for x, y in series.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    dash = DASHES[series.colour // COLOURS % len(DASHES)]
    style = f"color:var(--line-{series.colour % COLOURS})"
    marks = [
        f'<path d="M{x_axis(x):.1f} {y_axis(low):.1f}V{y_axis(high):.1f}"/>'
        for x, low, high in series.bars
        if not (y_axis.log and low <= 0)
    ]
    name = f"{series.label}, " if len(chart.series) > 1 else ""
    known = [*series.errors, *[None] * (len(placed) - len(series.errors))]
    for (x, y), (at, value), error in zip(placed, series.points, known, strict=True):
        spread = "" if error is None else f" ± {chart.text(error)}"
        text = escape(f"{name}{chart.x_label} {_tick(at)}: {chart.text(value)}{spread}")
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{text}</title></circle>')
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<g class="line" style="{style}"><path d="{path}"{dashed}/>{"".join(marks)}</g>'


def _spoken(chart: Chart) -> str:
    """Returns what a screen reader says: first and last value of each line."""
    said = []
    for series in chart.series:
        if series.points:
            first, last = (chart.text(series.points[i][1]) for i in (0, -1))
            name = f"{series.label}: " if len(chart.series) > 1 else ""
            said.append(f"{name}{first} to {last}")
    return f"{chart.title} over {chart.x_label}: {'; '.join(said)}"


def _tick(value: float) -> str:
    """Returns a number of an axis, short."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.4g} {letter}"
    return f"{value:.4g}"
