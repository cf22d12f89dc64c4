"""Figures of a run: panels of reconstructions, curves over rounds, samples of the prior."""

import functools
import gc
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d

from diffem.metric import Score
from diffem.storage.figure import write_figure

P = ParamSpec("P")

LOSS = Score("loss", "M-step loss")
GAPS = "lightsteelblue"  # between images, which may be white at their edges
SEEN = 512  # pixels of a side: of an image with twice as many, or more, several are averaged
COLUMNS = ("measurement", "reconstruction", "mean of samples", "std", "truth")


def freed(save: Callable[P, None]) -> Callable[P, None]:
    """Frees the figures of a function when it returns.

    A figure is tens of thousands of objects in cycles, which would stay until Python's collector
    goes through all objects of the process. While they are made it is off, so that all of them are
    young, and those alone are gone through.
    """

    @functools.wraps(save)
    def saved(*args: P.args, **kwargs: P.kwargs) -> None:
        enabled = gc.isenabled()
        gc.disable()
        try:
            save(*args, **kwargs)
        finally:
            if enabled:
                gc.enable()
            gc.collect(0)

    return saved


@freed
def save_panel(path: Path, title: str, columns: Sequence[Tensor]) -> None:
    """Saves measurement | reconstruction | mean of several samples | std of each pixel | truth.

    Arguments:
        path: The PNG file.
        title: The figure's title.
        columns: The columns, each (n, *shape); without the truth, the first four. Images,
            signals, and the middle slices of volumes are shown one in a row, vectors as a scatter
            plot of two entries. Three channels are colours; of two the modulus is shown, of other
            numbers of them the mean.
    """
    if columns[0].ndim == 2:
        _save_scatter(path, title, columns)
        return
    cell = (1.25, 1.1 * len(columns[0]) + 0.5)
    figure, axes = _cells(1, len(columns), cell, (0.04, 0.04, 0.04, 0.4))
    largest = max(float(columns[3].max()), 1e-3)
    for axis, name, column in zip(axes, COLUMNS, columns, strict=False):
        if name == "std":
            _show(axis, column.mean(dim=1, keepdim=True), (0.0, largest))
        else:
            _show(axis, column, (-1.0, 1.0))
        axis.set_title(f"{name} ≤ {largest:.2f}" if name == "std" else name, fontsize=7)
    figure.suptitle(title, fontsize=8, y=0.995)
    write_figure(path, figure)


@freed
def save_curves(
    path: Path,
    rounds: Sequence[Mapping[str, Any]],
    scores: Sequence[Score],
    truth: Mapping[str, float],
) -> None:
    """Saves scores over rounds, one axis for each score that the rounds have.

    Arguments:
        path: The PNG file.
        rounds: The rows of `rounds` in `summary.json`.
        scores: The scores of the run.
        truth: Scores of the true images, drawn as dashed lines.
    """
    shown = [s for s in (*scores, LOSS) if any(row.get(s.name) is not None for row in rounds)]
    columns = min(len(shown), 5)
    rows = math.ceil(len(shown) / columns)
    figure, axes = _cells(rows, columns, (2.6, 2.4), (0.6, 0.1, 0.5, 0.3))
    for axis, score in zip(axes, shown, strict=False):
        values = [(row["round"], row.get(score.name)) for row in rounds]
        points = [(k, value) for k, value in values if value is not None]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3)
        axis.set_title(score.title, fontsize=7)
        axis.set_xlabel("round", fontsize=8)
        axis.tick_params(labelsize=8)
        if (line := truth.get(score.name, score.expected)) is not None:
            axis.axhline(line, color="grey", linewidth=0.8, linestyle="--")
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    write_figure(path, figure)


@freed
def save_samples(path: Path, title: str, x: Tensor) -> None:
    """Saves samples side by side.

    Arguments:
        path: The PNG file.
        title: The figure's title.
        x: Samples, (n, *shape); of volumes the middle slice is shown.
    """
    figure, (axis,) = _cells(1, 1, (5, 5.3), (0.04, 0.04, 0.04, 0.3))
    if x.ndim == 2:
        _scatter(axis, x)
        axis.set_axis_off()
    else:
        _show(axis, x, (-1.0, 1.0), columns=math.ceil(math.sqrt(len(x))))
    figure.suptitle(title, fontsize=8, y=0.995)
    write_figure(path, figure)


@freed
def save_surprise(path: Path, y: Tensor, surprise: Tensor, scores: Sequence[float]) -> None:
    """Saves measurements, and below each where it is surprising.

    Arguments:
        path: The PNG file.
        y: Measurements on the grid of x, (n, *shape); of volumes the middle slice is shown.
        surprise: The surprise of each entry, (n, *shape).
        scores: A number for each, its title.
    """
    if y.ndim == 2:  # vectors, as lines
        y, surprise = y[:, None], surprise[:, None]
    figure = Figure(figsize=(1.4 * len(y) + 0.4, 3.2), layout="constrained")
    largest = max(float(surprise.max()), 1e-6)
    for column, image, found, score in zip(
        figure.subplots(2, len(y), squeeze=False).T, y, surprise, scores, strict=True
    ):
        found = found.mean(dim=0, keepdim=True)
        if image.ndim > 2:
            _show(column[0], image[None], (-1.0, 1.0))
            _show(column[1], found[None], (0.0, largest))
        else:
            column[0].plot(image.T.numpy(), linewidth=0.8)
            column[1].plot(found.T.numpy(), linewidth=0.8)
        column[0].set_title(f"{score:.3f}", fontsize=7)
    figure.suptitle("the most surprising measurements: -log p(y) per entry, and where", fontsize=8)
    write_figure(path, figure)


def _cells(
    rows: int, columns: int, cell: tuple[float, float], margins: tuple[float, float, float, float]
) -> tuple[Figure, list[Axes]]:
    """Returns a figure of cells of one size, and the axis in each.

    A layout that is computed of what is drawn takes longer than the drawing.

    Arguments:
        rows: The rows of cells.
        columns: The columns.
        cell: Width and height, in inches.
        margins: Left, right, below and above the axis in its cell, in inches.
    """
    (wide, high), (left, right, bottom, top) = cell, margins
    width, height = wide * columns, high * rows
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=left / width, right=1 - right / width,
        bottom=bottom / height, top=1 - top / height,
        wspace=(left + right) / (wide - left - right),
        hspace=(bottom + top) / (high - bottom - top),
    )  # fmt: skip
    return figure, list(axes.flat)


def _show(axis: Axes, x: Tensor, limits: tuple[float, float], *, columns: int = 1) -> None:
    """Shows images, signals or the middle slices of volumes, (n, C, *S), in a grid.

    Two channels are the parts of a complex image, whose modulus is shown; of other numbers of them
    than 1 and 3 the mean is. All are in one axis: each axis more takes as long as its images.
    """
    low, high = limits
    x = x[:, :, x.shape[2] // 2] if x.ndim == 5 else x
    if x.ndim == 4 and x.shape[1] == 2:
        x, low = x.norm(dim=1, keepdim=True), 0.0
    elif x.ndim == 4 and x.shape[1] not in (1, 3):
        x = x.mean(dim=1, keepdim=True)
    if x.ndim == 4:  # all pixels of large images would take gigabytes, and are not seen
        times = [max(1, min(side, max(x.shape[2:]) // SEEN)) for side in x.shape[2:]]
        x = avg_pool2d(x, times, ceil_mode=True)
    shown = ((x - low) / (high - low)).clamp(0, 1)
    shown = shown if shown.ndim == 3 else shown.movedim(1, -1).squeeze(-1)
    height, width, *colours = shown.shape[1:]
    gap = max(1, max(height, width) // 12)
    rows = math.ceil(len(shown) / columns)
    # Red, green, blue and, between the images, transparency.
    grid = torch.zeros(rows * (height + gap) - gap, columns * (width + gap) - gap, 4)
    for i, image in enumerate(shown):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        cell = grid[top : top + height, left : left + width]
        cell[..., :3] = image if colours else image[..., None]
        cell[..., 3] = 1
    axis.imshow(grid.numpy())
    axis.set(xticks=[], yticks=[], facecolor=GAPS)


def _save_scatter(path: Path, title: str, columns: Sequence[Tensor]) -> None:
    figure = Figure(figsize=(3 * len(columns), 3), layout="constrained")
    for axis, name, x in zip(figure.subplots(1, len(columns)), COLUMNS, columns, strict=False):
        _scatter(axis, torch.as_tensor(x))
        axis.set_title(name, fontsize=8)
    figure.suptitle(title, fontsize=8)
    write_figure(path, figure)


def _scatter(axis: Axes, x: Tensor) -> None:
    """Shows the first two entries of vectors, (n, D); of one alone that one on both axes."""
    axis.scatter(x[:, 0], x[:, min(1, x.shape[1] - 1)], s=2)
