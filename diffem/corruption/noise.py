"""Gaussian noise: ε ~ N(0, I) at a level σ_y that is fixed or drawn per sample."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.error import UserError

Level = float | Sequence[float]
"""A positive number, or a range (low, high) from which each sample draws log-uniformly."""


def check_level(name: str, level: Level) -> tuple[float, float]:
    """Returns the bounds of a level.

    Raises:
        UserError: If the level is not a positive number or a range 0 < low <= high.
    """
    bounds = tuple(level) if isinstance(level, Sequence) else (level, level)
    numbers = all(isinstance(b, int | float) and not isinstance(b, bool) for b in bounds)
    if not numbers or len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < math.inf:
        raise UserError(
            f"{name} must be a positive number or a range [low, high] with 0 < low <= high, "
            f"got {level!r}"
        )
    return float(bounds[0]), float(bounds[1])


def draw_level(bounds: tuple[float, float], n: int, generator: Generator) -> Tensor:
    """Draws n levels, (n,), log-uniformly between the bounds."""
    low, high = bounds
    if low == high:
        return torch.full((n,), low, device=generator.device)
    u = torch.rand(n, generator=generator, device=generator.device)
    return torch.exp(math.log(low) + u * math.log(high / low))


class GaussianNoise:
    """Additive white noise, y = A x + σ_y ε.

    Arguments:
        std: The level σ_y in the units of x ([-1, 1] images), > 0, or a range (low, high).

    Raises:
        UserError: If std is not positive.
    """

    def __init__(self, std: Level) -> None:
        self.bounds = check_level("corruption.noise.std", std)

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Draws the levels σ_y of n samples, (n,)."""
        return draw_level(self.bounds, n, generator)
