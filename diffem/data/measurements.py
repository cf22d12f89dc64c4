"""Measurement sets: what a run learns from, and how a benchmark simulates one."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffem.corruption import Channel, Measurement
from diffem.runtime.rng import generator

CHUNK = 1024  # draws depend on it: changing it changes the measurements of a seed


@dataclass(frozen=True)
class MeasurementSet:
    """Measurements, the channel they are assumed to come from and, for benchmarks, the truth."""

    measurement: Measurement
    """The measurements y_i, (N, …), with the parameters that the channel takes for known."""
    channel: Channel
    """The channel that they are assumed to have gone through."""
    truth: Tensor
    """The clean images, (N, *shape); seen by metrics alone, and by methods marked †."""

    def __len__(self) -> int:
        return len(self.measurement.y)

    def under(self, channel: Channel) -> "MeasurementSet":
        """Returns the same measurements under another channel, such as a learned one."""
        return replace(self, measurement=channel.assume(self.measurement), channel=channel)


def simulate_measurements(
    x: Tensor, channel: Channel, *, seed: int, split: str, assumed: Channel | None = None
) -> MeasurementSet:
    """Draws one measurement of each clean image.

    Arguments:
        x: Clean images, (N, *shape).
        channel: The channel that draws.
        seed: The run's seed.
        split: The name of the split, which keys the draws.
        assumed: What the channel is assumed to be; by default what it is.
    """
    draws = [
        channel.draw(part, generator(seed, "observe", split, c))
        for c, part in enumerate(x.split(CHUNK))
    ]
    drawn = Measurement(*(torch.cat(field) for field in zip(*draws, strict=True)))
    return MeasurementSet(drawn, channel, x).under(assumed or channel)
