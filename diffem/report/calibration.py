"""The report of a calibration: a table, sentences that say what it means, and a figure."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from diffem.metric import Calibration
from diffem.metric.calibration import BINS
from diffem.metric.energy import EnergyTest
from diffem.report.figures import freed
from diffem.report.table import Column, fitting_table, print_fitting
from diffem.report.verdict import SMALL
from diffem.runtime.progress import plain_console
from diffem.runtime.ranges import RANGES
from diffem.storage.figure import write_figure

BLIND_SPOTS = (
    "ranks, coverage and spread judge the sampler, not the prior: a wrong prior with its own "
    "exact posterior passes, and a sampler that fits the data better than the prior does fails",
    "the test of measurements judges the prior, but not what the channel hides: priors that "
    "differ in what no measurement shows pass alike",
)

PAIRS = 8
"""The fewest pairs of which swaps can give a p-value below 0.01: of n it is at least 2 / 2ⁿ."""


def findings(
    calibration: Calibration, test: EnergyTest | None, truth: Calibration | None
) -> list[str]:
    """Returns what a calibration means, in a few sentences.

    Arguments:
        calibration: That of images of the prior.
        test: The test of measurements of the prior's images against the held-out ones.
        truth: The calibration against the truth, where it is known.
    """
    p = calibration.p["all"]
    if p >= SMALL:
        first = f"For images of its own prior the sampler shows no fault (p = {p:.2g})."
    else:
        parts = [name for name, of in (("ranks", "ranks"), ("distances to y", "tarp"))
                 if calibration.p[of] < SMALL]  # fmt: skip
        first = (
            f"The sampler is not calibrated for images of its own prior (p = {p:.2g}, by "
            f"{' and '.join(parts) or 'all quantities together'})."
        )
    fault, of_prior = ("", []) if test is None else _judge_prior(test)
    says = [first, _spread(calibration, fault=fault), *of_prior]
    if truth is not None:
        value, error = truth.coverage["90"]
        says.append(
            f"Against the truth, which is known here, {value:.1%} ± {error:.1%} of the pixels lie "
            f"in 90 % intervals, and the factor is {truth.factor[0]:.3f} ± {truth.factor[1]:.3f}."
        )
    return says


def _judge_prior(test: EnergyTest) -> tuple[str, list[str]]:
    """Returns what is to be said against the prior, and what its measurements look like.

    Arguments:
        test: That of measurements of the prior's images against the held-out ones.
    """
    if len(test.parts) < PAIRS:
        return "which too few measurements were held out to judge", [
            "Whether measurements of the prior's images look like the held-out ones is not known: "
            f"it takes {PAIRS} of them, and there are {len(test.parts)}; hold more out in a new "
            "run_dir, by a larger dataset.heldout."
        ]
    if test.p < SMALL:
        return "whose images are not the right ones", [
            f"Measurements of the prior's images differ from the held-out ones (p = {test.p:.2g})"
            ": the prior, the channel or the noise is not right."
        ]
    return "", [
        f"Measurements of the prior's images look like the held-out ones (p = {test.p:.2g})."
    ]


def _spread(calibration: Calibration, *, fault: str = "") -> str:
    """Returns what the spread of the samples means.

    Arguments:
        calibration: That of images of the prior.
        fault: Why the prior is not to be relied on; empty if nothing is said against it.
    """
    factor, error = calibration.factor
    if abs(factor - 1) <= 2 * error:
        return (
            "Its samples spread as far as they err, to within twice the error of this factor: "
            f"{factor:.3f} ± {error:.3f}."
        )
    much = "too little" if factor > 1 else "too much"
    advice = f" (diffem sample … --recalibrate {factor:.3f})"
    if not RANGES["--recalibrate"].holds(round(factor, 3)):
        advice = ", which is further than --recalibrate corrects"
    elif fault:
        advice = f"; that may be the fault of the prior, {fault}"
    return (
        f"Its samples spread {much}: their deviations from their mean, times {factor:.3f} ± "
        f"{error:.3f}, are as large as the error{advice}."
    )


def print_calibration(
    calibration: Calibration, truth: Calibration | None, says: list[str]
) -> None:
    """Prints a table, what it means, and what it does not show.

    Arguments:
        calibration: That of images of the prior.
        truth: The calibration against the truth, where it is known.
        says: What `findings` returned.
    """
    console = plain_console()
    found = {"images of the prior": calibration}
    if truth is not None:
        found["held-out truth †"] = truth
    b, n = calibration.measurements, calibration.samples
    levels = list(calibration.coverage)
    names = ["p of ranks", "p of TARP (distance to y)"]
    names += [f"pixels in central {level} %" for level in levels]
    names += ["spread² / error²", "recalibration factor", "CRPS"]
    columns = [Column("", names, folds=True)]
    for heading, c in found.items():
        cells = [f"{c.p[key]:.3f}" for key in ("ranks", "tarp")]
        cells += [_percent(*c.coverage[level]) for level in levels]
        cells += [_number(*pair) for pair in (c.spread, c.factor, c.crps)]
        columns.append(Column(heading, cells))
    columns.append(Column("right", ["> 0.01", "> 0.01", *levels, "1", "1", "low"]))
    title = f"{n} samples of each of {b} measurements"
    print_fitting(fitting_table(title, columns, width=console.width))
    if truth is not None:
        console.print(
            f"† of {truth.measurements} held-out measurements, with clean images, which a run on "
            "real measurements does not have",
            soft_wrap=True,
        )
    for sentence in says:
        console.print(sentence, soft_wrap=True)
    for sentence in BLIND_SPOTS:
        console.print(f"not seen: {sentence}", soft_wrap=True)


def _percent(value: float, error: float) -> str:
    return f"{100 * value:.1f} ± {100 * error:.1f}"


def _number(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


@freed
def save_calibration(path: Path, calibration: Calibration, truth: Calibration | None) -> None:
    """Saves rank histograms, the TARP curve, spread against error, and a map of coverage.

    Arguments:
        path: The PNG file.
        calibration: That of images of the prior.
        truth: The calibration against the truth, where it is known.
    """
    both = {"images of the prior": calibration}
    if truth is not None:
        both["held-out truth †"] = truth
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    ranks, tarp, spread, coverage = figure.subplots(1, 4)
    for name, each in both.items():
        _plot_histogram(ranks, each, name)
        levels = each.tarp["levels"]
        tarp.plot(levels, each.tarp["coverage"], label=name)
        std, error = (each.maps[key].flatten().numpy() for key in ("std", "error"))
        spread.scatter(std, error, s=4, label=name)
    band, levels = (np.array(calibration.tarp[key]) for key in ("error", "levels"))
    tarp.fill_between(levels, levels - 2 * band, levels + 2 * band, color="grey", alpha=0.3)
    end = max(float(each.maps[key].max()) for each in both.values() for key in ("std", "error"))
    for axis, largest in ((tarp, 1.0), (spread, end)):
        axis.plot([0, largest], [0, largest], color="grey", linewidth=0.8, linestyle="--")
    ranks.axhline(1, color="grey", linewidth=0.8, linestyle="--")
    ranks.set(title="ranks of pixels", xlabel="rank of x among its samples", ylabel="density")
    ranks.set_ylim(bottom=0)
    tarp.set(title="TARP: distance to y", xlabel="credibility", ylabel="coverage")
    spread.set(title="each pixel", xlabel="posterior std", ylabel="error of the mean")
    ranks.legend(fontsize=6)
    _plot_map(coverage, calibration.maps["coverage"])
    write_figure(path, figure)


def _plot_histogram(axis: Axes, calibration: Calibration, name: str) -> None:
    counts = np.array(calibration.histograms["pixels"])
    axis.stairs(counts / counts.mean(), np.linspace(0, 1, BINS + 1), label=name)


def _plot_map(axis: Axes, coverage: Tensor) -> None:
    """Shows the coverage at 90 % of each pixel; of vectors and signals as a line."""
    title = "pixels in central 90 %"
    if coverage.ndim == 3:
        image = axis.imshow(coverage.mean(dim=0).numpy(), vmin=0.7, vmax=1.0)
        axis.set(xticks=[], yticks=[], title=title)
        axis.figure.colorbar(image, ax=axis)
        return
    axis.plot(coverage.flatten().numpy())
    axis.axhline(0.9, color="grey", linestyle="--")
    axis.set(title=title, xlabel="entry")
