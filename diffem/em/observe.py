"""Observing: clean benchmark images become observations, once, before anything is trained."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffem.corruption import Corruption, Observation
from diffem.random import generator

CHUNK = 1024  # draws depend on it: changing it changes the observations of a seed


@dataclass(frozen=True)
class Observed:
    """Observations and, for benchmarks, the truth behind them."""

    drawn: Observation
    """The observations y_i as they were drawn, (N, …)."""
    truth: Tensor
    """The clean images, (N, *shape); only metrics may see them (and methods that say so)."""
    corruption: Corruption
    """The channel that the observations are believed to have gone through."""

    @property
    def observation(self) -> Observation:
        """The observations with the levels that the channel is believed to have, (N, …)."""
        return self.corruption.believe(self.drawn)

    def __len__(self) -> int:
        return len(self.truth)


def observe(
    x: Tensor,
    corruption: Corruption,
    *,
    seed: int,
    split: str,
    believed: Corruption | None = None,
) -> Observed:
    """Draws one observation of each clean image.

    Arguments:
        x: Clean images, (N, *shape).
        corruption: The channel.
        seed: The run's seed.
        split: The name of the split, which keys the draw.
        believed: What the channel is taken to be; by default what it is.
    """
    draws = [
        corruption.draw(part, generator(seed, "observe", split, c))
        for c, part in enumerate(x.split(CHUNK))
    ]
    fields = (torch.cat(field) for field in zip(*draws, strict=True))
    return Observed(Observation(*fields), x, believed or corruption)
