"""Parameters of a channel: its noise level, a blur's width."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from diffem.runtime.ranges import PARAMETER, RANGES, Range, check

ROUNDING = 1e-5  # of a range: how far its ends, as a file has them, may be from the numbers


@dataclass(frozen=True)
class ChannelParameter:
    """A positive parameter of a channel: one known number, or drawn for each sample from a range.

    Immutable: a learned value makes a new parameter (`estimated`).

    Arguments:
        name: The configuration key that sets it.
        bounds: The range that samples draw from, log-uniformly; one number twice for a constant.
        known: The value that all measurements are assumed to have; None for a range, of which
            each measurement carries its own.
    """

    name: str
    bounds: tuple[float, float]
    known: float | None

    @classmethod
    def of(
        cls, name: str, value: float | Sequence[float], own: Range | None = None
    ) -> "ChannelParameter":
        """Returns the parameter that a configuration's number, or range [low, high], means.

        Arguments:
            name: The configuration key.
            value: The number or the range.
            own: What is allowed, in place of the table's; of a key that the table lacks, by
                default, any positive number.

        Raises:
            UserError: If the value is not a number, or a range low <= high, that is allowed.
        """
        check(name, value, own or RANGES.get(name, PARAMETER))
        low, high = map(float, value if isinstance(value, Sequence) else (value, value))
        return cls(name, (low, high), low if low == high else None)

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Draws n values, (n,), log-uniformly between the bounds."""
        low, high = self.bounds
        if low == high:
            return torch.full((n,), low, device=generator.device)
        u = torch.rand(n, generator=generator, device=generator.device)
        return torch.exp(math.log(low) + u * math.log(high / low))

    def assume(self, values: Tensor) -> Tensor:
        """Returns the known value for every entry; the values of a range stay as they are."""
        return values if self.known is None else torch.full_like(values, self.known)

    def fault(self, values: Tensor, unit: float = 1.0) -> str | None:
        """Returns what is wrong with values of measurements, as a sentence goes on; None if fine.

        Arguments:
            values: The values, (n,).
            unit: By what values are multiplied for the sentence, as to the data's own units.
        """
        low, high = self.bounds
        margin = ROUNDING * high
        wrong = values[~((values >= low - margin) & (values <= high + margin))]
        if not len(wrong):
            return None
        return (
            f"holds {float(wrong[0]) * unit:.6g}, outside {self.name}=[{low * unit:.6g},"
            f"{high * unit:.6g}]; give a range that holds all, or correct it"
        )

    def scaled(self, factor: float) -> "ChannelParameter":
        """Returns the parameter in units in which its values are larger by a factor."""
        low, high = self.bounds
        known = None if self.known is None else self.known * factor
        return ChannelParameter(self.name, (low * factor, high * factor), known)

    def estimated(self, value: float, widen: float = 1.0) -> "ChannelParameter":
        """Returns the parameter with an estimate as its known value.

        Arguments:
            value: The estimate.
            widen: New samples draw within this factor of the estimate, >= 1.
        """
        return ChannelParameter(self.name, (value / widen, value * widen), value)


def draw_each(parameters: Mapping[str, ChannelParameter], n: int, generator: Generator) -> Tensor:
    """Draws parameters of n samples, (n, K), a column for each in their order."""
    drawn = [parameter.draw(n, generator) for parameter in parameters.values()]
    return torch.stack(drawn, dim=1) if drawn else torch.empty(n, 0, device=generator.device)


def assume_each(parameters: Mapping[str, ChannelParameter], values: Tensor) -> Tensor:
    """Returns parameters (B, K) with the known ones in place of the drawn ones."""
    columns = zip(parameters.values(), values.unbind(dim=1), strict=True)
    assumed = [parameter.assume(column) for parameter, column in columns]
    return torch.stack(assumed, dim=1) if assumed else values
