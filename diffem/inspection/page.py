"""The page of an inspection: measurements, histogram, noise by brightness, what is measured."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffem.inspection.coverage import HARDLY, Coverage
from diffem.inspection.curve import fit_curve
from diffem.inspection.noise import NoiseEstimate, NoiseLaw
from diffem.inspection.survey import DataSurvey

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
    figure = Figure(figsize=(10, 8), layout="constrained")
    top, middle, bottom = (figure.add_subfigure(grid) for grid in figure.add_gridspec(3, 1))
    shown = survey.sample[np.linspace(0, len(survey.sample) - 1, SHOWN).astype(int)]
    for axis, y in zip(top.subplots(1, SHOWN), shown, strict=True):
        _show(axis, y, survey)
    histogram, curve = middle.subplots(1, 2)
    _histogram(histogram, survey)
    _curve(curve, noise)
    pixels, frequencies = bottom.subplots(1, 2)
    _pixels(pixels, coverage)
    _frequencies(frequencies, coverage)
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
    axis.set_title("variance by brightness (light grey: with structures)", fontsize=8)
    curve = noise.curve
    if curve is None:
        axis.text(0.5, 0.5, "cannot be told", ha="center", transform=axis.transAxes)
        return
    error = np.hypot(curve.error, curve.structure)
    fit = fit_curve(curve, 1 if noise.law is NoiseLaw.LINEAR else 0)
    for part, colour in ((fit.used, "C0"), (~fit.used, "lightgrey")):
        axis.errorbar(
            curve.mean[part], curve.variance[part], error[part],
            fmt="o", markersize=3, linewidth=0.8, color=colour,
        )  # fmt: skip
    axis.plot(curve.mean, fit(curve.mean), color="grey", linewidth=0.8)
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
    axis.axhline(HARDLY, color="red", linewidth=0.8)
    axis.set(xlabel="cycles/pixel", ylabel="relative power", xlim=(0, math.sqrt(0.5)))
