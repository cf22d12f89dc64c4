"""Learning-rate schedules over one round, as factors of the optimiser's rate."""

import math
from abc import ABC, abstractmethod

from diffem.runtime.errors import check_fraction


class Schedule(ABC):
    """Linear warm-up from 0 to 1, then a decay to a final factor.

    Arguments:
        warmup: The fraction of the round's steps spent warming up, in [0, 1).
        final: The factor at the round's end, in [0, 1]; 1 is a constant rate.
    """

    def __init__(self, warmup: float, final: float) -> None:
        self.warmup = check_fraction("m_step.schedule.warmup", warmup)
        self.final = final if final == 1 else check_fraction("m_step.schedule.final", final)

    def __call__(self, progress: float) -> float:
        """Returns the factor at a progress through the round in [0, 1]."""
        if progress < self.warmup:
            return max(progress / self.warmup, 1e-3)
        fraction = min((progress - self.warmup) / (1 - self.warmup), 1.0)
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
