"""Diversity of a set of images, which falls where EM collapses, and spread of a posterior."""

import math

import torch
from torch import Tensor

IMAGES = 2048  # of a set, at most: the eigenvalues cost its cube


def diversity(x: Tensor) -> float:
    """Returns the square root of the entries' mean variance over images, in units of x.

    Arguments:
        x: Images, (N, *shape), N >= 2; the first 2,048 are used.
    """
    return float(x[:IMAGES].double().var(dim=0).mean().sqrt())


def effective_rank(x: Tensor) -> float:
    """Returns exp(-Σ p_i log p_i), p the normalised eigenvalues of the images' covariance.

    Roy & Vetterli (2007). It lies in [1, min(N - 1, D)], and is 0 for images that are all equal;
    compare it with that of as many true images, since few images alone make it small.

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


def spread(samples: Tensor) -> float:
    """Returns the root mean square, over entries and measurements, of the std over samples.

    Arguments:
        samples: Samples of each measurement's posterior, (S, B, *shape), S >= 2.
    """
    return float(samples.double().var(dim=0).mean().sqrt())


def variety(x: Tensor) -> dict[str, float]:
    """Returns `diversity` and `effective_rank` of images, (N, *shape), N >= 2."""
    return {"diversity": diversity(x), "effective_rank": effective_rank(x)}
