"""Noise estimated from the measurements alone: its level, and how it grows with the light.

The variance of the noise is compared with the brightness, patch by patch:

    patches.py    how bright and how flat a patch is, and how far its neighbours differ
    flat.py       the noise's variance in the flattest patches: its level
    curve.py      the variance by brightness: the law that it follows
    camera.py     gain, offset and read-out noise, where the law is that of counted photons
    speckle.py    the level, where the law is that of speckle
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from diffem.inspection.camera import Camera, estimate_camera
from diffem.inspection.curve import Curve, bins, fit_curve, noise_curve
from diffem.inspection.estimate import CERTAIN, Estimate
from diffem.inspection.flat import FEWEST_BLOCKS, flattest, pooled, without_outliers
from diffem.inspection.patches import Frames, Patches, frames, take_patches
from diffem.inspection.speckle import Speckle, estimate_speckle

ENOUGH_BLOCKS = 400  # complete ones; of fewer, pairs of neighbours are taken in place of blocks
CLIPPED = 5e-3  # of a patch's values, by which a Gaussian's variance falls by less than 3 %
VARIES = 1.15  # times that of the differences is the variance of pixels with structures
ROUNDING = 1e-6  # of the values: less is no noise
LOWER = 3.0  # standard errors by which a higher difference must be lower
MORE = 0.15  # of the bins: by which a line must have more than a constant
MOST, NEARLY_ALL = 0.6, 0.9  # of the bins, for laws that structures may feign
GROWS = 1.3  # at least, from dark to bright, of a variance that depends on the brightness


class NoiseLaw(Enum):
    """What the noise's variance does as the brightness grows."""

    CONSTANT = "stays as it is"
    LINEAR = "grows with it, as that of counted photons"
    QUADRATIC = "grows with its square, as that of speckle"
    FALLING = "falls, as after a compression of the values"
    UNKNOWN = "cannot be told"


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
    speckle: Speckle | None
    """Speckle's numbers, where the variance grows with the square of the brightness."""
    curve: Curve | None
    """The variance by brightness."""
    repeated: bool
    """Whether neighbouring measurements repeat one scene, so that it was taken from them."""
    alike: bool = True
    """Whether neighbouring values are of neighbouring places of a scene."""
    why_not: str | None = None
    """Why the noise cannot be told; None if it can."""


def estimate_noise(
    y: np.ndarray,
    *,
    axes: int,
    clipped: Sequence[float] = (),
    offset: float | None = None,
    alike: bool = True,
) -> NoiseEstimate:
    """Estimates the noise of measurements.

    The noise must be independent from pixel to pixel: what was interpolated, compressed with a
    loss or smoothed has less noise between neighbours than it has in all.

    Arguments:
        y: Measurements, (N, …, *S), in the data's units; NaN where nothing was measured.
        axes: The number of axes of S along which neighbours are alike; 0 for vectors.
        clipped: The values that the detector clips to, if it does.
        offset: The mean of y without light, if it is known.
        alike: Whether neighbouring values are of neighbouring places of a scene. Those of a
            sinogram or of k-space are not: what was measured is part of their differences, and
            most of such measurements have much in common, so that they are not taken for repeated
            ones. The estimate is an upper bound then, whatever the brightness.
    """
    if not axes:
        return _unknown("the entries of a vector have no neighbours to compare with")
    given = frames(y, axes=axes, clipped=clipped, pairs=alike)
    chosen = _choose_patches(given)
    if isinstance(chosen, str):
        return _unknown(chosen)
    patches, curve = chosen
    flat = flattest(patches)
    # The flattest patches have structures if their pixels vary by more than the differences.
    varies = not given.repeated and _varies(flat.members, flat.variance)
    law = noise_law(curve) if alike and not varies else NoiseLaw.UNKNOWN
    if law not in (NoiseLaw.CONSTANT, NoiseLaw.UNKNOWN):  # of which there is no single level
        flat = pooled(without_outliers(patches))
    std = float(np.sqrt(flat.variance))
    if std <= ROUNDING * float(np.nanmax(np.abs(given.values))):
        return _unknown(
            "neighbouring values are equal: the measurements have no noise, or were rounded, "
            "compressed or clipped"
        )
    camera = None
    if law is NoiseLaw.LINEAR:
        camera = estimate_camera(curve, patches, offset=offset)
    speckle = estimate_speckle(curve) if law is NoiseLaw.QUADRATIC else None
    return NoiseEstimate(
        Estimate(std, flat.uncertainty / (2 * std)),
        flat.rises or varies or not alike,
        law,
        camera,
        speckle,
        curve,
        given.repeated,
        alike,
    )


def _unknown(reason: str) -> NoiseEstimate:
    return NoiseEstimate(None, False, NoiseLaw.UNKNOWN, None, None, None, False, why_not=reason)


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
    kept = [b for b in bins(patches) if patches.clipped[b].mean() <= CLIPPED]
    return np.concatenate(kept) if kept else np.empty(0, int)


def _varies(patches: Patches, variance: float) -> bool:
    """Returns whether pixels vary by more than their differences: white noise does not."""
    # The median: some patches have an edge in one half alone.
    return bool(len(patches)) and float(np.median(patches.spread)) > VARIES * variance


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
    smallest = max(min(low, high), 0.01 * middle)
    change = max(low, high) / smallest if smallest > 0 else 0.0  # images without any noise
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
