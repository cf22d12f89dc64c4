"""Diversity of a set of images, which falls if EM collapses, and of a posterior's samples."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from diffem.metric.score import Score

IMAGES = 2048  # the most images that are used: the cost of the eigenvalues is cubic in them

DIVERSITY = Score("diversity", "diversity", images=2, detail=True)
EFFECTIVE_RANK = Score("effective_rank", "effective rank", digits=None, images=2)
POSTERIOR_STD = Score("posterior_std", "posterior std")
CHANGE = Score("change", "RMS change since the round before")
COLLAPSED = {DIVERSITY: 0.9, EFFECTIVE_RANK: 0.4}
"""The fractions of round 0's scores below which a round has collapsed.

Of 59 runs of this project's studies, none of which collapsed, one fell below 0.9 in diversity
(0.82, of impulse noise, whose round 0 is more diverse than true images), and none below 0.41 in
rank, which may fall while EM improves: structure takes the place of round 0's Gaussian noise. At
0.9 the images' Fréchet distance has grown by (1 - 0.9)² of their total variance.
"""


def diversity(x: Tensor) -> float:
    """Returns the square root of the mean over pixels of the variance over images.

    Arguments:
        x: Images, (N, *shape), N >= 2; the first 2,048 are used.
    """
    return float(x[:IMAGES].double().var(dim=0).mean().sqrt())


def effective_rank(x: Tensor) -> float:
    """Returns exp(-Σ p_i log p_i), p the normalised eigenvalues of the images' covariance.

    Roy & Vetterli (2007). It lies in [1, min(N - 1, D)], and is 0 for images that are all equal.
    Few images alone make it small: compare it with that of as many true images.

    Arguments:
        x: Images, (N, *shape), N >= 2; the first 2,048 are used.
    """
    x = x[:IMAGES].flatten(1).double()
    x = x - x.mean(dim=0)
    # Both products have the same non-zero eigenvalues; the smaller one is faster.
    product = x.T @ x if x.shape[1] <= len(x) else x @ x.T
    values = torch.linalg.eigvalsh(product).clamp_min(0)
    total = values.sum()
    if total == 0:
        return 0.0
    return math.exp(float(torch.special.entr(values / total).sum()))


def posterior_std(samples: Tensor) -> float:
    """Returns the posterior's standard deviation, as a root mean square over pixels and y.

    Arguments:
        samples: Samples of the posterior of each measurement, (S, B, *shape), S >= 2.
    """
    return float(samples.double().var(dim=0).mean().sqrt())


def diversity_metrics(x: Tensor) -> dict[str, float]:
    """Returns `diversity` and `effective_rank` of images, (N, *shape); nothing if N < 2."""
    if len(x) < DIVERSITY.images:
        return {}
    return {DIVERSITY.name: diversity(x), EFFECTIVE_RANK.name: effective_rank(x)}


def rms_change(x: Tensor, before: Tensor) -> float:
    """Returns the root mean square difference of reconstructions from those of the round before.

    Where EM has converged it is √2 times the posterior's standard deviation: two independent
    samples of one posterior differ so.

    Arguments:
        x: Reconstructions, (N, *shape).
        before: Those of the same measurements in the round before, (N, *shape).
    """
    return float((x.double() - before.double()).square().mean().sqrt())


def find_collapse(
    row: Mapping[str, float | None], first: Mapping[str, float | None]
) -> list[tuple[Score, float]]:
    """Returns the scores by which a round's reconstructions have collapsed, if there are any.

    Arguments:
        row: The scores of the round.
        first: Those of round 0.

    Returns:
        Each score that fell below its fraction of round 0's, and the fraction that is left of it.
    """
    left = []
    for score, least in COLLAPSED.items():
        now, before = row.get(score.name), first.get(score.name)
        if now is not None and before and now < least * before:
            left.append((score, now / before))
    return left
