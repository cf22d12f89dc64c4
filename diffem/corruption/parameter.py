"""Levels of a channel: its noise level, a blur's width."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.runtime.errors import UserError


class Level:
    """A positive parameter of the channel: known, drawn for each sample, or learned.

    Arguments:
        name: The key that a user sets it by.
        value: A positive number, or a range (low, high) from which each sample draws
            log-uniformly.

    Attributes:
        bounds: The range that samples are drawn from; a single number twice.
        known: The one level that all measurements are taken to have; None for a range, of which
            each measurement knows its own.

    Raises:
        UserError: If the value is not a positive number or a range 0 < low <= high.
    """

    def __init__(self, name: str, value: float | Sequence[float]) -> None:
        bounds = tuple(value) if isinstance(value, Sequence) else (value, value)
        numbers = all(isinstance(b, int | float) and not isinstance(b, bool) for b in bounds)
        if not numbers or len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < math.inf:
            raise UserError(
                f"{name} must be a positive number or a range [low, high] with 0 < low <= high, "
                f"got {value!r}"
            )
        self.name = name
        self.bounds = float(bounds[0]), float(bounds[1])
        self.known = self.bounds[0] if bounds[0] == bounds[1] else None

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Draws n levels, (n,), log-uniformly between the bounds."""
        low, high = self.bounds
        if low == high:
            return torch.full((n,), low, device=generator.device)
        u = torch.rand(n, generator=generator, device=generator.device)
        return torch.exp(math.log(low) + u * math.log(high / low))

    def believed(self, levels: Tensor) -> Tensor:
        """Returns the known level in the place of each of the levels, if there is one."""
        return levels if self.known is None else torch.full_like(levels, self.known)

    def learn(self, value: float, widen: float) -> None:
        """Takes an estimate for known and draws new samples within a factor of it.

        Arguments:
            value: The estimate.
            widen: The factor, >= 1.
        """
        self.known, self.bounds = value, (value / widen, value * widen)
