"""Speckle's level, from the noise's variance by brightness.

Noise that is multiplied by the intensity, and white noise besides, have the variance

    V[y] = κ² (E[y] - offset)² + σ²,

so that over patches in which the mean μ of y differs from pixel to pixel the variance is that of
E[(μ - offset)²] = E[μ²] - 2 offset E[μ] + offset², which is more than that of E[μ].
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from diffem.inspection.curve import Curve
from diffem.inspection.estimate import Estimate

LEAST = 0.01  # of a bin's standard deviation: it is not known better


@dataclass(frozen=True)
class Speckle:
    """Multiplicative noise: V[y] = κ² (E[y] - offset)² + σ²."""

    level: Estimate
    """κ, the noise's standard deviation relative to the intensity."""
    offset: Estimate
    """The mean of y without light."""
    std: float
    """The standard deviation σ of the white noise besides."""


def estimate_speckle(curve: Curve) -> Speckle:
    """Returns the numbers of speckle by least squares of the bins' standard deviations.

    Few bins that structures lift count for little (the loss grows with the deviation, not with its
    square). The standard errors are widened where the bins scatter by more than theirs.

    Arguments:
        curve: The noise's variance by brightness, of more than three bins.
    """
    square = np.array([np.average(p.square, weights=p.blocks) for p in curve.members])
    low, span = float(curve.mean.min()), float(np.ptp(curve.mean))
    # Brightness is counted from the darkest bin, in units of the range.
    mean = (curve.mean - low) / span
    square = (square - 2 * low * curve.mean + low**2) / span**2
    std = np.sqrt(np.maximum(curve.variance, 0)) / span
    largest = max(float(std.max()), np.finfo(float).tiny)
    error = (
        np.hypot(curve.error, curve.structure) / span**2 / (2 * np.maximum(std, 1e-9 * largest))
    )
    error = np.maximum(error, LEAST * std) + 1e-6 * largest

    def deviations(p: np.ndarray) -> np.ndarray:  # of κ, offset, σ
        light = np.maximum(square - 2 * p[1] * mean + p[1] ** 2, 0)
        return (std - np.sqrt(p[0] ** 2 * light + p[2] ** 2 + 1e-12 * largest**2)) / error

    start = [max(std[-1] - std[0], 1e-3 * largest), 0.0, max(float(std[0]), 1e-3 * largest)]
    best = least_squares(deviations, start, loss="soft_l1", x_scale=[largest, 1.0, largest])
    lack = max(1.0, float(np.sqrt(2 * best.cost / max(1, len(mean) - len(start)))))
    errors = lack * np.sqrt(np.linalg.pinv(best.jac.T @ best.jac).diagonal())
    level, offset, white = best.x
    return Speckle(
        Estimate(float(abs(level)), float(errors[0])),
        Estimate(low + span * float(offset), span * float(errors[1])),
        span * float(abs(white)),
    )
