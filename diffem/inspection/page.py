"""The page of an inspection: measurements, histogram, noise by brightness, what is measured."""

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffem.inspection.coverage import Coverage
from diffem.inspection.noise import NoiseEstimate, NoiseLaw, fit_curve
from diffem.inspection.survey import DataSurvey

matplotlib.use("Agg", force=False)

SHOWN = 4  # measurements
BINS = 100


def save_page(
    path: Path, title: str, survey: DataSurvey, noise: NoiseEstimate, coverage: Coverage | None
) -> None:
    """Saves the page as a PNG file.

    Arguments:
        path: The file.
        title: The title of the page.
        survey: What is in the measurements.
        noise: What they tell of their noise.
        coverage: What they measure; None of a channel that is not linear.
    """
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots(3, SHOWN)
    for axis, y in zip(axes[0], survey.sample, strict=False):
        _show(axis, y, survey)
    for axis in axes[0, len(survey.sample) :]:
        axis.set_axis_off()
    grid = axes[1, 0].get_gridspec()
    for axis in axes[1:].flat:
        axis.remove()
    _histogram(figure.add_subplot(grid[1, :2]), survey)
    _curve(figure.add_subplot(grid[1, 2:]), noise)
    _pixels(figure.add_subplot(grid[2, :2]), coverage)
    _frequencies(figure.add_subplot(grid[2, 2:]), coverage)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=130)


def _show(axis: Axes, y: np.ndarray, survey: DataSurvey) -> None:
    """Draws one measurement: an image, or a line."""
    while y.ndim > 2:  # the first channel, or the middle slice
        y = y[0] if y.shape[0] < 5 else y[len(y) // 2]
    if y.ndim == 2:
        finite = survey.sample[np.isfinite(survey.sample)]
        low, high = np.quantile(finite, (0.005, 0.995))
        axis.imshow(y.astype(float), cmap="gray", vmin=low, vmax=high)
        axis.set(xticks=[], yticks=[])
    else:
        axis.plot(y, linewidth=0.8)
    axis.set_title("measurement", fontsize=7)


def _histogram(axis: Axes, survey: DataSurvey) -> None:
    values = survey.sample[np.isfinite(survey.sample)].astype(float)
    axis.hist(values, bins=BINS, log=True)
    for limit in survey.limits:
        axis.axvline(limit, color="red", linewidth=0.8)
    axis.set(xlabel="value", ylabel="number")
    axis.set_title("values (red: clipped there)" if survey.limits else "values", fontsize=8)


def _curve(axis: Axes, noise: NoiseEstimate) -> None:
    axis.set_title("variance of the noise by brightness", fontsize=8)
    curve = noise.curve
    if curve is None:
        axis.text(0.5, 0.5, "cannot be told", ha="center", transform=axis.transAxes)
        return
    error = np.hypot(curve.error, curve.structure)
    axis.errorbar(curve.mean, curve.variance, error, fmt="o", markersize=3, linewidth=0.8)
    if noise.law is NoiseLaw.LINEAR:
        axis.plot(curve.mean, fit_curve(curve, 1)(curve.mean), color="grey", linewidth=0.8)
    elif noise.std is not None:
        axis.axhline(noise.std.value**2, color="grey", linewidth=0.8)
    axis.set(xlabel="mean", ylabel="variance", ylim=(0, None))


def _pixels(axis: Axes, coverage: Coverage | None) -> None:
    axis.set_title("how much of each pixel is measured (diagonal of AᵀA)", fontsize=8)
    if coverage is None:
        axis.text(0.5, 0.5, "the channel is not linear", ha="center", transform=axis.transAxes)
        return
    pixels = coverage.pixels
    if pixels.ndim == 1:
        axis.plot(pixels, marker=".", linewidth=0.8)
        axis.set(ylim=(0, None))
        return
    while pixels.ndim > 2:
        pixels = pixels.mean(axis=0)
    image = axis.imshow(pixels, vmin=0)
    axis.figure.colorbar(image, ax=axis)


def _frequencies(axis: Axes, coverage: Coverage | None) -> None:
    axis.set_title("power that is left of each frequency", fontsize=8)
    if coverage is None or coverage.frequencies is None:
        axis.text(0.5, 0.5, "no frequencies", ha="center", transform=axis.transAxes)
        return
    found = coverage.frequencies
    left = np.maximum(found.relative.ravel(), 1e-6)
    axis.semilogy(found.radius.ravel(), left, ".", markersize=2)
    axis.axhline(0.01, color="red", linewidth=0.8)
    axis.set(xlabel="cycles/pixel", ylabel="relative power", xlim=(0, math.sqrt(0.5)))
