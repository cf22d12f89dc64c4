"""The noise's variance by brightness, and polynomials through it."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from diffem.inspection.flat import flattest
from diffem.inspection.patches import Patches

BINS = 24  # of the brightness, about
IN_BIN = 30  # patches, at least
RESAMPLES = 200
BELOW, ABOVE = 3.0, 3.5  # standard errors from a fit: far below it, and no longer on it


@dataclass(frozen=True)
class Curve:
    """The noise's variance by brightness, (K,) each, from dark to bright."""

    mean: np.ndarray
    """The mean brightness of a bin's patches."""
    variance: np.ndarray
    """The noise's variance in them."""
    error: np.ndarray
    """Its standard error."""
    structure: np.ndarray
    """What structures may add to it, see `Flat`."""
    members: tuple[Patches, ...]
    """The patches that each was taken from."""


def noise_curve(patches: Patches) -> Curve:
    """Returns the noise's variance by brightness.

    The level that patches are binned by and the mean that stands for them are those of different
    pixels: binned by their own mean, the brightest bin would be that of the largest noise, and
    the slope too small.
    """
    found = [flattest(patches.select(b)) for b in bins(patches)]
    found.sort(key=lambda f: f.mean)
    columns = (
        np.array([getattr(f, name) for f in found])
        for name in ("mean", "variance", "error", "structure")
    )
    return Curve(*columns, members=tuple(f.members for f in found))


def bins(patches: Patches) -> list[np.ndarray]:
    """Returns the numbers of the patches of each bin of the level, from dark to bright.

    The edges are quantiles and equal steps both, so that neither a large dark background nor a
    few bright patches are all in one bin.
    """
    level = patches.level
    quantiles = np.quantile(level, np.linspace(0, 1, BINS + 1)[1:-1])
    low, high = np.quantile(level, (0.001, 0.999))
    steps = np.linspace(low, high, BINS + 1)[1:-1]
    number = np.searchsorted(np.union1d(quantiles, steps), level)
    order = np.argsort(number, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(number[order])) + 1)
    merged: list[np.ndarray] = []
    for part in parts:
        if merged and len(merged[-1]) < IN_BIN:
            merged[-1] = np.concatenate([merged[-1], part])
        else:
            merged.append(part)
    if len(merged) > 1 and len(merged[-1]) < IN_BIN:
        merged[-2:] = [np.concatenate(merged[-2:])]
    return merged


@dataclass(frozen=True)
class Fit:
    """A polynomial of the brightness through a curve, and what it is worth."""

    coefficients: np.ndarray
    """Of 1, m, m², …, m the brightness less the centre, over the scale."""
    errors: np.ndarray
    """Their standard errors, widened where the curve is not a polynomial of this degree."""
    structure: np.ndarray
    """By how much structures may change them."""
    used: np.ndarray
    """The bins that agree with it."""
    below: np.ndarray
    """The bins that are far below it, which structures do not explain."""
    centre: float
    scale: float

    def __call__(self, mean: np.ndarray | float) -> np.ndarray:
        """Returns the variance at a brightness."""
        m = (np.asarray(mean, float) - self.centre) / self.scale
        return np.polynomial.polynomial.polyval(m, self.coefficients)


def fit_curve(curve: Curve, degree: int) -> Fit:
    """Fits a polynomial to the bins that structures do not lift, which may be few.

    Structures only add to a bin's variance: the polynomial that is looked for has many bins on it
    and none far below. Of all that go through degree + 1 bins the one with the best score starts
    weighted least squares, in which bins far above count for nothing. A bin's standard error is
    proportional to the variance that the fit gives it, not to the one that was measured: low ones
    would count for more.

    Arguments:
        curve: The curve, of more than `degree` bins.
        degree: The degree.
    """
    centre = float(curve.mean.mean())
    scale = float(np.ptp(curve.mean)) or 1.0
    powers = np.vander((curve.mean - centre) / scale, degree + 1, increasing=True)
    blocks = np.array([patches.blocks.sum() for patches in curve.members])
    some = curve.variance > 0  # counts without light and read-out have none
    relative = np.where(some, curve.error / np.where(some, curve.variance, 1), np.sqrt(2 / blocks))
    floor = 0.02 * float(np.median(curve.variance[some])) if some.any() else 1.0

    def deviations(fitted: np.ndarray) -> np.ndarray:
        """Returns by how many standard errors the bins are above a fit."""
        return (curve.variance - fitted) / (np.maximum(fitted, floor) * relative)

    tried = np.array(list(combinations(range(len(powers)), degree + 1)))
    tried = tried[np.ptp(powers[tried][..., -1], axis=1) > 1e-6] if degree else tried
    solved = np.linalg.pinv(powers[tried]) @ curve.variance[tried][..., None]
    z = deviations(solved[..., 0] @ powers.T)
    score = np.exp(-(z**2) / 2).sum(axis=1) - (z < -BELOW).sum(axis=1)
    fitted = powers @ solved[score.argmax(), :, 0]
    coefficients, weights = np.zeros(degree + 1), np.ones(len(powers))
    root = weights[:, None]
    for _ in range(20):
        z = deviations(fitted)
        sigma = np.hypot(np.maximum(fitted, floor) * relative, curve.structure)
        weights = np.where(z > 0, np.clip(1 - (z / ABOVE) ** 2, 0, None) ** 2, 1.0)
        weights = np.maximum(weights / np.maximum(1.0, -z / 2), 1e-9) / sigma**2
        root = np.sqrt(weights)[:, None]
        coefficients = np.linalg.lstsq(root * powers, root[:, 0] * curve.variance, rcond=None)[0]
        fitted = powers @ coefficients
    z = deviations(fitted)
    used, below = np.abs(z) < ABOVE, z < -ABOVE
    residual = np.where(used, weights * (curve.variance - fitted) ** 2, 0.0).sum()
    lack = max(1.0, float(np.sqrt(residual / max(1, used.sum() - degree - 1))))
    errors = lack * _resampled(curve, powers.shape[1], centre, scale, weights)
    structure = np.linalg.lstsq(root * powers, root[:, 0] * curve.structure, rcond=None)[0]
    return Fit(coefficients, errors, structure, used, below, centre, scale)


def _resampled(
    curve: Curve, size: int, centre: float, scale: float, weights: np.ndarray
) -> np.ndarray:
    """Returns the standard errors of a fit's coefficients, by bootstrap over clusters.

    Images, or parts of few ones, are drawn with replacement: brightness and noise of the bins are
    those of the drawn ones.
    """
    names = np.unique(np.concatenate([p.cluster for p in curve.members]))
    sums = np.zeros((3, len(names), len(curve.mean)))
    for k, patches in enumerate(curve.members):
        row = np.searchsorted(names, patches.cluster)
        for i, values in enumerate((np.ones(len(patches)), patches.mean, patches.variance)):
            sums[i, :, k] = np.bincount(row, patches.blocks * values, len(names))
    rng = np.random.default_rng(0)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    count, mean, variance = (times @ part for part in sums)  # (resamples, bins)
    some = count > 0
    count = np.where(some, count, 1.0)
    powers = ((mean / count - centre) / scale)[..., None] ** np.arange(size)
    weight = (weights * some)[..., None]
    normal = np.einsum("rki,rkj->rij", weight * powers, powers)
    right = np.einsum("rki,rk->ri", weight * powers, variance / count)
    drawn = np.linalg.pinv(normal) @ right[..., None]
    return drawn[..., 0].std(axis=0, ddof=1)
