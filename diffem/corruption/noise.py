"""Gaussian noise: ε ~ N(0, I) at a level σ_y that is known, drawn per sample, or learned."""

from collections.abc import Sequence

from diffem.corruption.parameter import Level


class GaussianNoise:
    """Additive white noise, y = A x + σ_y ε.

    Arguments:
        std: The level σ_y in the units of x ([-1, 1] images), > 0, or a range (low, high).

    Raises:
        UserError: If std is not positive.
    """

    def __init__(self, std: float | Sequence[float]) -> None:
        self.level = Level("corruption.noise.std", std)
