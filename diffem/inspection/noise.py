"""Noise estimated from the measurements alone: its level, how it grows with the light, the camera.

The variance of the noise is compared with the brightness, patch by patch (`patches.py`). A camera
that counts photons and adds the noise of its read-out has the photon-transfer relation

    V[y] = gain · (E[y] - offset) + read²                  (Janesick 2007, Photon Transfer, ch. 5)

whose slope is the gain, in units of the data a photon. The line alone has one more number, and the
offset and the read-out noise are two: they are known where some pixels see no light.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations

import numpy as np

from diffem.inspection.patches import Frames, Patches, frames, take_patches

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)  # of patches, the flattest ones
AGREE = 1.5  # standard errors within which a larger fraction agrees with a smaller one
FEWEST_BLOCKS = 100  # that a variance is taken from: to 14 %
ENOUGH_BLOCKS = 400  # complete ones; of fewer, pairs of neighbours are taken in place of blocks
OUTLIER = 36.0  # times the variance: six standard deviations
CLIPPED = 5e-3  # of a patch's values, by which a Gaussian's variance falls by less than 3 %
BINS = 24  # of the brightness, about
IN_BIN = 30  # patches, at least
VARIES = 1.15  # times that of the differences is the variance of pixels with structures
UNSEEN = 0.01  # of a variance: structures that are too small to be told from chance
ROUNDING = 1e-6  # of the values: less is no noise
RESAMPLES = 200
BELOW, ABOVE = 3.0, 3.5  # standard errors from a fit: far below it, and no longer on it
LOWER = 3.0  # standard errors by which a higher difference must be lower
CERTAIN = 4.0  # standard errors of a dependence that is reported
MORE = 0.15  # of the bins: by which a line must have more than a constant
MOST, NEARLY_ALL = 0.6, 0.9  # of the bins, for laws that structures may feign
GROWS = 1.3  # at least, from dark to bright, of a variance that depends on the brightness
SAME_LEVEL = 0.1  # of dark patches, the largest slope of the other half's mean
BETWEEN = 0.05  # of the number of dark patches: as many may be a little brighter
LIT = 0.25  # of the variance of the darkest level: more of it is light's
DARK = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of patches, the darkest ones


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated, and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        error = float(f"{self.error:.2g}")
        places = 0 if error == 0 else max(0, 1 - int(np.floor(np.log10(error))))
        if places > 6 or abs(self.value) >= 1e7:
            return f"{self.value:.4g} ± {error:.2g}"
        return f"{self.value:.{places}f} ± {error:.{places}f}"


class NoiseLaw(Enum):
    """How the variance of the noise depends on the brightness."""

    CONSTANT = "it does not"
    LINEAR = "it grows with it, as that of counted photons"
    QUADRATIC = "it grows with its square, as that of speckle"
    FALLING = "it falls, as after a compression of the values"
    UNKNOWN = "it cannot be told"


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
    """By how much it rises if twice as many patches, which are less flat, are taken."""
    members: tuple[Patches, ...]
    """The patches that each was taken from."""


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


@dataclass(frozen=True)
class NoiseEstimate:
    """What measurements tell of their noise, in the data's units."""

    std: Estimate | None
    """The standard deviation of the noise where the images are flat; None if it cannot be told."""
    at_most: bool
    """Whether structures add to it wherever one looks, so that it is an upper bound."""
    law: NoiseLaw
    """How it depends on the brightness."""
    camera: Camera | None
    """The camera's numbers, where the variance grows with the brightness."""
    curve: Curve | None
    """The variance by brightness."""
    repeated: bool
    """Whether neighbouring measurements repeat one scene, so that it was taken from them."""
    why_not: str | None = None
    """Why the noise cannot be told; None if it can."""


def estimate_noise(
    y: np.ndarray,
    *,
    axes: int,
    clipped: Sequence[float] = (),
    offset: float | None = None,
) -> NoiseEstimate:
    """Estimates the noise of measurements.

    The noise must be independent from pixel to pixel: what was interpolated, compressed with a
    loss or smoothed has less noise between neighbours than it has in all.

    Arguments:
        y: Measurements, (N, …, *S), in the data's units; NaN where nothing was measured.
        axes: The number of axes of S along which neighbours are alike; 0 for vectors.
        clipped: The values that the detector clips to, if it does.
        offset: The mean of y without light, if it is known.
    """
    if not axes:
        return _unknown("the entries of a vector have no neighbours to compare with")
    given = frames(y, axes=axes, clipped=clipped)
    chosen = _choose_patches(given)
    if isinstance(chosen, str):
        return _unknown(chosen)
    patches, curve = chosen
    flat = flattest(patches)
    # The flattest patches have structures if their pixels vary by more than the differences.
    varies = not given.repeated and _varies(flat.members, flat.variance)
    law = NoiseLaw.UNKNOWN if varies else noise_law(curve)
    if law not in (NoiseLaw.CONSTANT, NoiseLaw.UNKNOWN):  # of which there is no single level
        flat = _pooled(_without_outliers(patches))
    std = float(np.sqrt(flat.variance))
    if std <= ROUNDING * float(np.nanmax(np.abs(given.values))):
        return _unknown(
            "neighbouring values are equal: the measurements have no noise, or were rounded, "
            "compressed or clipped"
        )
    camera = None
    if law is NoiseLaw.LINEAR:
        camera = estimate_camera(curve, patches, offset=offset)
    return NoiseEstimate(
        Estimate(std, flat.uncertainty / (2 * std)),
        flat.rises or varies,
        law,
        camera,
        curve,
        given.repeated,
    )


def _unknown(reason: str) -> NoiseEstimate:
    return NoiseEstimate(None, False, NoiseLaw.UNKNOWN, None, None, False, reason)


def _choose_patches(given: Frames) -> tuple[Patches, Curve] | str:
    """Returns the patches of the lowest difference that structures add little to, and their curve.

    A higher difference cancels more of a structure, and has fewer blocks: it is taken where the
    noise is lower by it than by the one before, by more than chance, at some brightness.

    Returns:
        Why there are none, if there are none.
    """
    signal = given.values.shape[1] == 1
    best: tuple[Patches, Curve] | None = None
    reason = "there are not enough neighbouring pixels that were measured"
    # Neighbours in a row at last: where pixels lack, more of them remain than of whole blocks.
    for orders in (
        (0 if signal else 1, 1),
        (0 if signal else 2, 2),
        (0 if signal else 3, 3),
        (0, 1),
    ):
        patches = take_patches(given, orders)
        few = FEWEST_BLOCKS if orders == (0, 1) else ENOUGH_BLOCKS
        if patches is None or patches.blocks.sum() < few or (best and orders == (0, 1)):
            continue
        kept = patches.select(_unclipped(patches))
        if kept.blocks.sum() < few:
            reason = "most patches hold values that the detector clipped"
            continue
        curve = noise_curve(kept)
        if best is None or _is_lower(curve, best[1]):
            best = kept, curve
    return reason if best is None else best


def _is_lower(curve: Curve, other: Curve) -> bool:
    """Returns whether a curve is below another one at some brightness, by more than chance."""
    variance = np.interp(other.mean, curve.mean, curve.variance)
    error = np.interp(other.mean, curve.mean, curve.error)
    return bool((other.variance - variance > LOWER * np.hypot(error, other.error)).any())


def _unclipped(patches: Patches) -> np.ndarray:
    """Returns the patches of brightnesses at which the detector clips next to nothing.

    Single patches are not left out for what was clipped: those that remained would be the ones
    whose noise happens to be small.
    """
    if not patches.clipped.any():
        return np.arange(len(patches))
    kept = [b for b in _bins(patches) if patches.clipped[b].mean() <= CLIPPED]
    return np.concatenate(kept) if kept else np.empty(0, int)


@dataclass(frozen=True)
class Flat:
    """The noise's variance in the flattest patches."""

    mean: float
    variance: float
    error: float
    """The standard error of the variance, by clusters of patches."""
    structure: float
    """By how much the variance rises with the next larger fraction that was still accepted."""
    rises: bool
    """Whether the variance rises as soon as more than the flattest patches are taken."""
    members: Patches
    """The patches."""

    @property
    def uncertainty(self) -> float:
        """The standard error with what structures may add."""
        return float(np.hypot(np.hypot(self.error, self.structure), UNSEEN * self.variance))


def flattest(patches: Patches) -> Flat:
    """Returns the variance in as many patches, from the flattest on, as agree with fewer.

    Structures only add to d². Taking more patches lowers the standard error as long as these are
    as flat: the largest fraction is taken whose variance agrees with that of
    each smaller one (Lepski's rule).

    Arguments:
        patches: The patches of one brightness, or of all.
    """
    order = np.argsort(patches.spread, kind="stable")
    accepted: list[Flat] = []
    rise = 0.0
    for fraction in FRACTIONS:
        chosen = patches.select(order[: int(np.ceil(fraction * len(order)))])
        chosen = _without_outliers(chosen)
        if fraction < 1 and chosen.blocks.sum() < FEWEST_BLOCKS:
            continue
        found = _pooled(chosen)
        if any(abs(found.variance - f.variance) > AGREE * f.error for f in accepted):
            rise = max(0.0, found.variance - accepted[-1].variance)
            break
        accepted.append(found)
    last = accepted[-1]
    rises = len(accepted) == 1 and rise > 0.1 * last.variance
    change = last.variance - accepted[-2].variance if accepted[1:] else 0.0
    structure = rise if rises else change
    return Flat(last.mean, last.variance, last.error, abs(structure), rises, last.members)


def _without_outliers(patches: Patches) -> Patches:
    """Leaves out patches with a difference of more than six standard deviations: a defect."""
    if not len(patches):
        return patches
    limit = 100 * np.median(patches.variance)
    for _ in range(3):
        kept = patches.peak <= limit if limit > 0 else np.ones(len(patches), bool)
        if not kept.any():
            return patches
        chosen = patches.select(kept)
        limit = OUTLIER * np.average(chosen.variance, weights=chosen.blocks)
    return patches.select(patches.peak <= limit) if limit > 0 else patches


def _varies(patches: Patches, variance: float) -> bool:
    """Returns whether pixels vary by more than their differences: white noise does not."""
    # The median: some patches have an edge in one half alone.
    return bool(len(patches)) and float(np.median(patches.spread)) > VARIES * variance


def _pooled(patches: Patches) -> Flat:
    """Returns mean and variance of all patches, and the standard error of the latter."""
    weight = patches.blocks.astype(float)
    total = max(1.0, weight.sum())
    mean = float((weight * patches.mean).sum() / total)
    variance = float((weight * patches.variance).sum() / total)
    residual = np.bincount(patches.cluster, weight * (patches.variance - variance))
    clusters = len(np.unique(patches.cluster))
    spread = np.sqrt((residual**2).sum() * clusters / max(1, clusters - 1)) / total
    # Of Gaussian noise; few clusters may by chance agree better.
    error = max(float(spread), variance * np.sqrt(2 / total))
    return Flat(mean, variance, error, 0.0, False, patches)


def _bins(patches: Patches) -> list[np.ndarray]:
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


def noise_curve(patches: Patches) -> Curve:
    """Returns the noise's variance by brightness.

    The level that patches are binned by and the mean that stands for them are those of different
    pixels: binned by their own mean, the brightest bin would be that of the largest noise, and
    the slope too small.
    """
    found = [flattest(patches.select(b)) for b in _bins(patches)]
    found.sort(key=lambda f: f.mean)
    columns = (
        np.array([getattr(f, name) for f in found])
        for name in ("mean", "variance", "error", "structure")
    )
    return Curve(*columns, members=tuple(f.members for f in found))


@dataclass(frozen=True)
class Fit:
    """A polynomial of the brightness through a curve, and what it is worth."""

    coefficients: np.ndarray
    """Of 1, m, m², …, m the brightness less the centre, over the scale."""
    errors: np.ndarray
    """Their standard errors, widened where the curve is not a polynomial of this degree."""
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
    return Fit(coefficients, errors, used, below, centre, scale)


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


def noise_law(curve: Curve) -> NoiseLaw:
    """Returns how the variance of the noise depends on the brightness.

    A dependence is reported if it is certain and if the variance changes by a third.
    """
    if len(curve.mean) < 3:
        return NoiseLaw.UNKNOWN
    flat, line = fit_curve(curve, 0), fit_curve(curve, 1)
    slope, error = line.coefficients[1], line.errors[1]
    mean = curve.mean[line.used]
    if len(mean) < 3:
        return NoiseLaw.UNKNOWN
    low, middle, high = (float(v) for v in line(np.quantile(mean, (0, 0.5, 1))))
    change = max(low, high) / max(min(low, high), 0.01 * middle)
    # Structures may lift bins: that a constant leaves some above it is no reason to prefer a line.
    square = fit_curve(curve, 2) if len(curve.mean) > 4 else line
    most = max(line.used.sum(), square.used.sum())
    more = most >= flat.used.sum() + MORE * len(curve.mean)
    more |= slope > 0 and bool(flat.below.any()) and not line.below.any()
    if abs(slope) < CERTAIN * error or change < GROWS or not more:
        # Patches of one brightness differ by less than what the noise leaves of a mean.
        wide = float(np.ptp(curve.mean[flat.used])) > 2 * np.sqrt(max(0.0, middle))
        return NoiseLaw.CONSTANT if wide else NoiseLaw.UNKNOWN
    if slope < 0:
        return NoiseLaw.FALLING if line.used.mean() > NEARLY_ALL else NoiseLaw.CONSTANT
    if square is not line:
        _, rise, bend = square.coefficients
        # The slope goes from rise - bend in the dark to rise + bend: of a line it is the same.
        if bend > CERTAIN * square.errors[2] and bend > rise / 3 and square.used.mean() > MOST:
            return NoiseLaw.QUADRATIC
    return NoiseLaw.LINEAR


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
    gain = Estimate(line.coefficients[1] / line.scale, line.errors[1] / line.scale)
    if gain.value < CERTAIN * gain.error:
        return None
    darkest = float(curve.mean[0]), float(np.sqrt(max(0.0, float(line(curve.mean[0])))))
    if offset is not None:
        at = (offset - line.centre) / line.scale
        error = float(np.hypot(line.errors[0], at * line.errors[1]))
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
