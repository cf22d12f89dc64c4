"""Learning-rate schedules, as factors of the optimiser's rate."""

import math
from abc import ABC, abstractmethod

from diffem.runtime.ranges import check


class Schedule(ABC):
    """Linear warm-up from 0 to 1, a constant, and a decay to a final factor.

    Arguments:
        warmup: The fraction spent warming up, in [0, 1).
        final: The factor at the end, in [0, 1]; 1 is a constant rate.
        decay: The last fraction, in which the factor decays, in (0, 1]; 1: from the warm-up on.
    """

    def __init__(self, warmup: float, final: float, decay: float = 1.0) -> None:
        self.fall = check("m_step.schedule.decay", decay)
        self.warmup = check("m_step.schedule.warmup", warmup)
        self.final = check("m_step.schedule.final", final)

    def __call__(self, progress: float) -> float:
        """Returns the factor at a progress in [0, 1] through a round, or through the budget."""
        if progress < self.warmup:
            return max(progress / self.warmup, 1e-3)
        start = max(self.warmup, 1 - self.fall)
        fraction = min(max((progress - start) / (1 - start), 0.0), 1.0)
        return self.final + (1 - self.final) * self.decay(fraction)

    @abstractmethod
    def decay(self, fraction: float) -> float:
        """Returns a curve from 1 at 0 to 0 at 1."""


class Cosine(Schedule):
    """Half a cosine down to the final factor."""

    def decay(self, fraction: float) -> float:
        """Returns (1 + cos π fraction) / 2."""
        return (1 + math.cos(math.pi * fraction)) / 2


class Linear(Schedule):
    """A straight line down to the final factor."""

    def decay(self, fraction: float) -> float:
        """Returns 1 - fraction."""
        return 1 - fraction
