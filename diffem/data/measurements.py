"""Observing: clean benchmark images become measurements, once, before anything is trained."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffem.corruption import Corruption, Measurement
from diffem.runtime.rng import generator

CHUNK = 1024  # draws depend on it: changing it changes the measurements of a seed


@dataclass(frozen=True)
class MeasurementSet:
    """Measurements and, for benchmarks, the truth behind them."""

    drawn: Measurement
    """The measurements y_i as they were drawn, (N, …)."""
    truth: Tensor
    """The clean images, (N, *shape); only metrics may see them (and methods that say so)."""
    corruption: Corruption
    """The channel that the measurements are believed to have gone through."""

    @property
    def measurement(self) -> Measurement:
        """The measurements with the levels that the channel is believed to have, (N, …)."""
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
) -> MeasurementSet:
    """Draws one measurement of each clean image.

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
    return MeasurementSet(Measurement(*fields), x, believed or corruption)
