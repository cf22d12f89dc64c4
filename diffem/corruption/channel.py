"""Corruption: a known channel q(y | x) that can be drawn again from any image.

    y = A_φ(x) + σ_y ε,   φ ~ p(φ),   ε ~ N(0, I)

φ are the operator's parameters (a mask, a blur width, a matrix). They are drawn afresh for every
sample and kept with the measurement, as is the noise level σ_y.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Generator, Tensor

from diffem.corruption.noise import GaussianNoise
from diffem.corruption.parameter import Level
from diffem.corruption.spectrum import Spectrum
from diffem.runtime.errors import UserError


class Measurement(NamedTuple):
    """A batch of measurements and the parameters of the channel that each was drawn with."""

    y: Tensor
    """The measurement, (B, *M)."""
    operator: Tensor
    """The operator's parameters φ, (B, *P); (B, 0) where the operator has none."""
    std: Tensor
    """The noise level σ_y, (B,)."""

    def select(self, index: slice | Tensor) -> "Measurement":
        """Returns the samples at an index along the batch."""
        return Measurement(self.y[index], self.operator[index], self.std[index])

    def to(self, target: torch.device | torch.dtype | str) -> "Measurement":
        """Moves or casts every field, as torch.Tensor.to does."""
        return Measurement(*(field.to(target) for field in self))


def expand(level: Tensor, like: Tensor) -> Tensor:
    """Reshapes one value per sample, (B,), to broadcast against a batch, (B, *)."""
    return level.reshape(-1, *(1,) * (like.ndim - 1))


T = TypeVar("T")


def full_precision(method: Callable[..., T]) -> Callable[..., T]:
    """Keeps a method's matrix products out of autocast, which would round them to bfloat16."""

    @functools.wraps(method)
    def exact(self: "Corruption", x: Tensor, *args: Tensor, **kwargs: bool) -> T:
        with torch.autocast(x.device.type, enabled=False):
            return method(self, x, *args, **kwargs)

    return exact


class Corruption(ABC):
    """Abstract linear channel y = A_φ x + σ_y ε.

    A method that multiplies matrices is decorated by `full_precision`: the channel is exact
    whatever the trainer's precision.

    Arguments:
        shape: The shape of x: (C, *S) for images and signals, (D,) for vectors.
        noise: The noise, which draws σ_y.
        learn: The levels that are unknown and learned from the measurements (`levels` names
            them); the channel's own are where the search starts.

    Raises:
        UserError: If a level to learn is not one of the channel's, or is a range.
    """

    def __init__(
        self, shape: Sequence[int], noise: GaussianNoise, *, learn: Sequence[str] = ()
    ) -> None:
        self.shape = tuple(shape)
        self.noise = noise
        self.learn = tuple(learn)
        for name in self.learn:
            if name not in self.levels:
                raise UserError(
                    f"corruption.learn can name {', '.join(self.levels)} of this corruption, "
                    f"got {name!r}"
                )
            if self.levels[name].known is None:
                raise UserError(
                    f"{self.levels[name].name} must be one number, the start, where "
                    f"corruption.learn names it; got {list(self.levels[name].bounds)}"
                )

    @property
    def levels(self) -> dict[str, Level]:
        """The channel's levels by the names that `learn` uses."""
        return {"noise": self.noise.level}

    def draw_operator(self, n: int, generator: Generator) -> Tensor:
        """Draws the operator's parameters of n samples, (n, *P)."""
        return torch.empty(n, 0, device=generator.device)

    @abstractmethod
    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        """Returns the noiseless A_φ x, (B, *M), of images (B, *shape)."""

    @abstractmethod
    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        """Returns A_φᵀ y, (B, *shape), of measurements (B, *M)."""

    def observed(self, y: Tensor, operator: Tensor) -> Tensor:
        """Returns 1 where y holds a measured entry and 0 where it holds none, (B, *M)."""
        return torch.ones_like(y)

    def draw(self, x: Tensor, generator: Generator) -> Measurement:
        """Draws y ~ q(y | x) with fresh parameters and fresh noise.

        Arguments:
            x: Images, (B, *shape), on the generator's device.
            generator: The source of all randomness.
        """
        operator = self.draw_operator(len(x), generator)
        std = self.noise.level.draw(len(x), generator)
        y = self.apply(x, operator)
        noise = torch.randn(y.shape, generator=generator, device=y.device)
        y = y + self.observed(y, operator) * expand(std, y) * noise
        return Measurement(y, operator, std)

    def believe(self, measurement: Measurement) -> Measurement:
        """Returns the measurement with the levels that this channel takes for known.

        What the channel is believed to be may differ from what made the measurement. A level that
        is a range stays each sample's own.
        """
        y, operator, std = measurement
        return Measurement(y, operator, self.noise.level.believed(std))

    def lift(self, measurement: Measurement) -> Tensor:
        """Brings y back on the grid of x, (B, *shape)."""
        return self.adjoint(measurement.y, measurement.operator)

    def spectrum(self, operator: Tensor) -> Spectrum | None:
        """Returns AᵀA = V diag(s²) Vᵀ for each sample, or None where it is not at hand."""
        return None

    def maps(self, measurement: Measurement) -> list[Tensor]:
        """Returns what the network should see of the operator, each (B, C', *S)."""
        return []

    def embed(self, measurement: Measurement, *, maps: bool = True) -> Tensor:
        """Returns what the network sees: lifted y, the operator's maps and σ_y, (B, C', *S).

        Arguments:
            measurement: The measurements.
            maps: Whether the operator's maps are among it.
        """
        lifted = self.lift(measurement)
        std = constant_map(measurement.std, lifted)
        return torch.cat([lifted, *(self.maps(measurement) if maps else []), std], dim=1)

    def square_error(self, measurement: Measurement, x: Tensor) -> Tensor:
        """Returns mean((A x - y)²) over the measured entries, (B,)."""
        return self.residual_chi2(measurement, x) * measurement.std**2

    def residual_chi2(self, measurement: Measurement, x: Tensor) -> Tensor:
        """Returns mean((A x - y)² / σ_y²) over the measured entries, (B,).

        If x ~ p(x | y) under the true prior, (x, y) has the joint law of clean image and
        measurement, so the residual has exactly the noise's law and this is 1 in expectation.
        """
        return self._square_sum(measurement, x) / self._count(measurement)

    def log_likelihood(self, measurement: Measurement, x: Tensor) -> Tensor:
        """Returns log q(y | x) of the measured entries, given the operator, (B,)."""
        log_2pi_var = math.log(2 * math.pi) + 2 * measurement.std.log()
        return -(self._square_sum(measurement, x) + self._count(measurement) * log_2pi_var) / 2

    def _square_sum(self, measurement: Measurement, x: Tensor) -> Tensor:
        y, operator, std = measurement
        residual = self.observed(y, operator) * (self.apply(x, operator) - y) / expand(std, y)
        return residual.square().flatten(1).sum(dim=1)

    def _count(self, measurement: Measurement) -> Tensor:
        return self.observed(measurement.y, measurement.operator).flatten(1).sum(dim=1)


def constant_map(level: Tensor, like: Tensor) -> Tensor:
    """Spreads one value per sample, (B,), over the grid of a batch (B, C, *S): (B, 1, *S)."""
    return expand(level, like).expand(-1, 1, *like.shape[2:])
