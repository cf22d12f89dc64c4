"""The noise in the flattest of many patches, where structures add next to nothing."""

from dataclasses import dataclass

import numpy as np

from diffem.inspection.patches import Patches

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)  # of patches, the flattest ones
AGREE = 1.5  # standard errors within which a larger fraction agrees with a smaller one
FEWEST_BLOCKS = 100  # that a variance is taken from: to 14 %
OUTLIER = 36.0  # times the variance: six standard deviations
UNSEEN = 0.01  # of a variance: structures that are too small to be told from chance


@dataclass(frozen=True)
class Flat:
    """The noise's variance in the flattest patches."""

    mean: float
    """The mean brightness of the patches."""
    variance: float
    """The noise's variance in them."""
    error: float
    """The standard error of the variance, by clusters of patches."""
    structure: float
    """What structures may add to the variance: by how much it changed with the last fraction that
    was taken or, where it rises, by how much with the first that was not."""
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
    as flat: the largest fraction is taken whose variance agrees with that of each smaller one
    (Lepski's rule).

    Arguments:
        patches: The patches of one brightness, or of all.
    """
    order = np.argsort(patches.spread, kind="stable")
    accepted: list[Flat] = []
    rise = 0.0
    for fraction in FRACTIONS:
        chosen = patches.select(order[: int(np.ceil(fraction * len(order)))])
        chosen = without_outliers(chosen)
        if fraction < 1 and chosen.blocks.sum() < FEWEST_BLOCKS:
            continue
        found = pooled(chosen)
        if any(abs(found.variance - f.variance) > AGREE * f.error for f in accepted):
            rise = max(0.0, found.variance - accepted[-1].variance)
            break
        accepted.append(found)
    last = accepted[-1]
    rises = len(accepted) == 1 and rise > 0.1 * last.variance
    change = last.variance - accepted[-2].variance if accepted[1:] else 0.0
    structure = rise if rises else change
    return Flat(last.mean, last.variance, last.error, abs(structure), rises, last.members)


def pooled(patches: Patches) -> Flat:
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


def without_outliers(patches: Patches) -> Patches:
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
