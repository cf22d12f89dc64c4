"""Measurement sets: what a run learns from, and how a benchmark simulates one."""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from diffem.corruption import Channel, Measurement
from diffem.data.scale import Scale
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator

LOOKED_AT, LOOKED_AT_ENTRIES = 64, 2**20  # at most, of measurements and of their images
CHUNK = 1024  # draws depend on it: changing it changes the measurements of a seed


class MeasurementSource(Protocol):
    """Measurements that are read when they are asked for: they need not fit in memory."""

    def __len__(self) -> int:
        """Returns the number of measurements."""
        ...

    def select(self, index: slice | Tensor) -> Measurement:
        """Returns the measurements at an index, on the CPU."""
        ...


@dataclass(frozen=True)
class MeasurementSet:
    """Measurements, the channel they are assumed to come from and, if it is known, the truth."""

    source: Measurement | MeasurementSource
    """The measurements y_i, (N, …), as they were drawn or recorded: in memory, or read when they
    are asked for."""
    channel: Channel
    """The channel that they are assumed to have gone through."""
    truth: Tensor | None = None
    """The clean images, (N, *shape); seen by metrics alone, and by methods marked †."""
    scale: Scale = Scale(-1.0, 1.0)  # noqa: RUF009 - immutable
    """The data's own units."""
    groups: Tensor | None = None
    """The number of each measurement's group, (N,), int64; None without groups."""
    numbers: Tensor | None = None
    """The number of each measurement of a benchmark before some were withdrawn, (N,), int64; None
    for 0 … N - 1."""

    def __len__(self) -> int:
        # The length of a named tuple is that of its fields.
        return len(self.source.y if isinstance(self.source, Measurement) else self.source)

    def select(self, index: slice | Tensor) -> Measurement:
        """Returns the measurements at an index, on the CPU.

        They carry the parameters that the channel takes for known.

        Arguments:
            index: Rows among the N: a slice, or their numbers, (n,).
        """
        return self.channel.assume(self.source.select(index))

    def known_truth(self, part: str) -> Tensor:
        """Returns the clean images, (N, *shape), for a part of a run that needs them.

        Raises:
            UserError: If they are not known; the sentence begins with the part.
        """
        if self.truth is None:
            raise UserError(
                f"{part} needs clean images, and these measurements have none; choose what learns "
                "from measurements alone"
            )
        return self.truth

    def doubt(self) -> str | None:
        """Returns why the measurements are hardly of the channel, as `Channel.doubt` does.

        Some of them are looked at, the first ones.
        """
        some = min(LOOKED_AT, max(4, LOOKED_AT_ENTRIES // math.prod(self.channel.shape)))
        return self.channel.doubt(self.select(slice(some)))

    def under(self, channel: Channel) -> "MeasurementSet":
        """Returns the same measurements under another channel, such as a learned one."""
        return replace(self, channel=channel)


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

    Raises:
        UserError: If the channel draws numbers that are not finite.
    """
    draws = [
        channel.draw(part, generator(seed, "observe", split, c))
        for c, part in enumerate(x.split(CHUNK))
    ]
    drawn = Measurement(*(torch.cat(field) for field in zip(*draws, strict=True)))
    if not drawn.y.isfinite().all():
        raise UserError(
            f"corruption: {channel} makes measurements of the benchmark that are not finite; give "
            "its parameters and corruption.noise less extreme values"
        )
    return MeasurementSet(drawn, assumed or channel, x)
