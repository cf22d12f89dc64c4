"""A camera's gain, offset and read-out noise, from the noise's variance by brightness.

A camera that counts photons and adds the noise of its read-out has the photon-transfer relation

    V[y] = gain · (E[y] - offset) + read²                  (Janesick 2007, Photon Transfer, ch. 5)

whose slope is the gain, in units of the data a photon. The line alone has one more number, and the
offset and the read-out noise are two: they are known where some pixels see no light.
"""

from dataclasses import dataclass

import numpy as np

from diffem.inspection.curve import IN_BIN, Curve, fit_curve
from diffem.inspection.estimate import CERTAIN, Estimate
from diffem.inspection.flat import Flat, flattest
from diffem.inspection.patches import Patches

SAME_LEVEL = 0.1  # of dark patches, the largest slope of the other half's mean
BETWEEN = 0.05  # of the number of dark patches: as many may be a little brighter
LIT = 0.25  # of the variance of the darkest level: more of it is light's
DARK = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of patches, the darkest ones


@dataclass(frozen=True)
class Camera:
    """A camera's noise: V[y] = gain · (E[y] - offset) + read²."""

    gain: Estimate
    """Units of the data a photon."""
    darkest: tuple[float, float]
    """The mean of the darkest patches, and the standard deviation of their noise."""
    offset: Estimate | None
    """The mean of y without light; None where no pixel is known to be dark."""
    read: Estimate | None
    """The standard deviation of the read-out noise; None where the offset is not known."""
    why_not: str | None
    """Why offset and read-out noise are not known; None if they are."""


def estimate_camera(
    curve: Curve, patches: Patches, *, offset: float | None = None
) -> Camera | None:
    """Returns the numbers of a camera by the photon-transfer relation; None without a slope.

    Arguments:
        curve: The noise's variance by brightness.
        patches: All patches.
        offset: The mean of y without light, if it is known.
    """
    line = fit_curve(curve, 1)
    slope, error = line.coefficients[1], line.errors[1]
    if slope < CERTAIN * error:
        return None
    errors = np.hypot(line.errors, line.structure)
    gain = Estimate(slope / line.scale, errors[1] / line.scale)
    darkest = float(curve.mean[0]), float(np.sqrt(max(0.0, float(line(curve.mean[0])))))
    if offset is not None:
        at = (offset - line.centre) / line.scale
        error = float(np.hypot(errors[0], at * errors[1]))
        return Camera(
            gain, darkest, Estimate(offset, 0.0), _root(float(line(offset)), error), None
        )
    dark = _dark_patches(patches, gain, darkest[1])
    if isinstance(dark, str):
        return Camera(gain, darkest, None, None, dark)
    flat, light = dark
    count = len(flat.members)
    drift = np.cov(flat.members.level, flat.members.mean)[0, 1].clip(min=0)
    level = Estimate(flat.mean, float(np.sqrt(flat.variance / count + drift)))
    read = _root(flat.variance, float(np.hypot(flat.uncertainty, gain.value * light)))
    return Camera(gain, (flat.mean, float(np.sqrt(flat.variance))), level, read, None)


def _root(variance: float, error: float) -> Estimate:
    """Returns the standard deviation of a variance with a standard error; at least 0."""
    std = float(np.sqrt(max(0.0, variance)))
    # Near 0 the root is not linear: its error is at most that of a variance of 0.
    return Estimate(std, min(error / (2 * std) if std else np.inf, float(np.sqrt(error))))


def _dark_patches(patches: Patches, gain: Estimate, noise: float) -> tuple[Flat, float] | str:
    """Returns patches that see no light, and the light that some may see; or why there are none.

    That their level is dark is told by the third cumulant of its noise, which is
    gain² (E[y] - offset) of counted photons and 0 of a Gaussian read-out.

    Arguments:
        patches: All patches.
        gain: The gain.
        noise: The standard deviation of the noise of the darkest patches.
    """
    found = _one_level(patches)
    if found is None:
        found = _separate_level(patches, noise)
    if found is None:
        return "no pixels of one darkest level were found"
    found = found.select(_near_median(found.mean) & _near_median(found.level))
    flat = flattest(found)
    third = _without_tails(found.third)  # a defect is no light
    light = third.mean() / gain.value**2
    if light < 3 * third.std() / np.sqrt(len(third)) / gain.value**2:
        return flat, 0.0
    if gain.value * light > LIT * flat.variance:
        return (
            "the darkest level sees light (its noise is as skewed as that of "
            f"{light / gain.value:.2g} photons)"
        )
    return flat, float(light)


def _one_level(patches: Patches) -> Patches | None:
    """Returns the darkest patches if they are of one brightness; None if they are not.

    Where both halves of patches see one level, how bright one of them is, by its noise, says
    nothing of the other.
    """
    order = np.argsort(patches.level, kind="stable")
    found = None
    for fraction in DARK:
        chosen = patches.select(order[: int(fraction * len(order))])
        if len(chosen) < 2 * IN_BIN:
            continue
        level = chosen.level - chosen.level.mean()
        mean = _without_tails(chosen.mean)  # an edge may be in one half alone
        square = max(float((level**2).sum()), np.finfo(float).tiny)
        slope = float((level * (mean - mean.mean())).sum()) / square
        rest = mean - mean.mean() - slope * level
        error = float(np.sqrt((rest**2).sum() / len(chosen) / square))
        if abs(slope) <= SAME_LEVEL and error <= SAME_LEVEL:
            # Half of them, the darker ones by the other pixels: dim edges are in the other half.
            found = patches.select(order[: int(fraction * len(order)) // 2])
        elif found is not None:
            break
    return found


def _separate_level(patches: Patches, noise: float) -> Patches | None:
    """Returns the darkest patches if next to none are a little brighter; None if some are.

    Their level may drift, as that of the overscan of a CCD does, by less than the noise.
    """
    flat = patches.select(patches.spread < 4 * noise**2)
    if len(flat) < 2 * IN_BIN:
        return None
    level = flat.level - np.quantile(flat.level, DARK[0])
    dark = level < 3 * noise
    brighter = (level >= 3 * noise) & (level < 8 * noise)
    if dark.sum() < 2 * IN_BIN or brighter.sum() > BETWEEN * dark.sum():
        return None
    return flat.select(dark)


def _near_median(values: np.ndarray) -> np.ndarray:
    """Returns which values are within three deviations of the median."""
    distance = np.abs(values - np.median(values))
    return distance <= 3 * 1.48 * np.median(distance)


def _without_tails(values: np.ndarray) -> np.ndarray:
    """Returns values of which those far from the median are drawn to five deviations from it."""
    middle = float(np.median(values))
    width = 5 * 1.48 * float(np.median(np.abs(values - middle)))
    return np.clip(values, middle - width, middle + width)
