"""Noise levels: the times at which a schedule has given levels λ = log(α_t / σ_t)."""

import torch
from azula.noise import Schedule
from torch import Tensor

BISECTIONS = 50


def level(schedule: Schedule, t: Tensor) -> Tensor:
    """Returns λ = log(α_t / σ_t) at times in [0, 1]; it falls as t rises."""
    alpha, sigma = schedule(t)
    return (alpha / sigma).log()


def times_at(schedule: Schedule, levels: Tensor, ends: Tensor) -> Tensor:
    """Returns the times at which a schedule has given levels, found by bisection.

    Arguments:
        schedule: The schedule.
        levels: λ, float64, between those of the ends.
        ends: Two times in [0, 1], float64, which the times lie between.
    """
    low, high = ends.min().expand(levels.shape), ends.max().expand(levels.shape)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        noisier = level(schedule, middle) < levels
        low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
    return (low + high) / 2
