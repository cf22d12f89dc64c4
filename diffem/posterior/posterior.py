"""Posteriors: p(x | y) as an object that draws samples, and what all of them share."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from azula.sample import Sampler
from torch import Generator, Tensor

from diffem.corruption import Channel, LinearChannel, Measurement, require
from diffem.denoiser import Denoiser
from diffem.runtime.errors import UserError
from diffem.runtime.rng import Key, seeded

SamplerFactory = partial[Any]
"""One of azula's samplers, its steps among the keywords; called with the denoiser."""


class Measurements(Protocol):
    """Measurements whose rows are taken as they are needed."""

    def __len__(self) -> int: ...

    def select(self, index: slice | Tensor, /) -> Measurement:
        """Returns the measurements at an index."""
        ...


class Start(NamedTuple):
    """Earlier draws of the same measurements, from which a posterior draws others."""

    x: Tensor
    """The earlier draws, one of each measurement, (B, *shape)."""
    t: float
    """The time in (0, 1) that they are brought back to: the larger, the more is forgotten."""


class Posterior(ABC):
    """Abstract posterior p(x | y), from which an E-step draws."""

    requires: ClassVar[type[Channel]] = Channel
    """The class of channels that it works with."""
    redraws: ClassVar[bool] = False
    """Whether it can draw from earlier draws (`redraw`)."""

    @property
    def fits(self) -> bool:
        """Whether it needs moments of reconstructions (`fit`) before it can draw."""
        return False

    @abstractmethod
    def draw(self, measurement: Measurement) -> Tensor:
        """Draws one x ~ p(x | y) for each measurement, (B, *shape), from the global generators."""

    def redraw(self, measurement: Measurement, start: Start) -> Tensor:
        """Draws one x ~ p(x | y) for each measurement, (B, *shape), from earlier draws.

        Arguments:
            measurement: The measurements.
            start: An earlier draw of each.

        Raises:
            NotImplementedError: If it draws from noise alone.
        """
        raise NotImplementedError(f"{type(self).__name__} draws from noise alone")

    def sample(self, measurement: Measurement, n: int = 1) -> Tensor:
        """Draws n samples for each measurement, (n, B, *shape), from the global generators."""
        return torch.stack([self.draw(measurement) for _ in range(n)])

    def fit(self, reconstructions: Tensor) -> None:  # noqa: B027 - most have nothing to fit
        """Takes moments of the round before, if the posterior needs any.

        Arguments:
            reconstructions: Some reconstructions x̂ of that round, (n, *shape).
        """

    def under(self, channel: Channel) -> Self:
        """Returns the posterior under another channel, such as a learned one."""
        return self

    def uncounted(self) -> Self:
        """Returns the posterior with a denoiser whose evaluations are not counted as EM's."""
        return self


class DenoiserPosterior(Posterior):
    """Abstract posterior that a denoiser and a channel define.

    Arguments:
        denoiser: The denoiser.
        channel: The channel.

    Raises:
        UserError: If the channel is none that the posterior works with.
    """

    samplers: ClassVar[tuple[type, ...]] = (Sampler,)
    """The samplers of azula that it can draw with; empty if it draws without one."""

    def __init__(self, denoiser: Denoiser, channel: Channel) -> None:
        require(channel, self.requires, f"method.posterior={type(self).__name__}")
        self.denoiser = denoiser
        self.channel = channel

    def under(self, channel: Channel) -> Self:
        """Returns the posterior under another channel, such as a learned one."""
        new = copy.copy(self)
        new.channel = channel
        return new

    def uncounted(self) -> Self:
        """Returns the posterior with a denoiser whose evaluations are not counted as EM's."""
        new = copy.copy(self)
        new.denoiser = self.denoiser.uncounted()
        return new


class Prior:
    """p(x) as an object that draws samples.

    Arguments:
        denoiser: A denoiser that takes no condition.
        shape: The shape of one sample.
        sampler: The sampler.
    """

    def __init__(
        self, denoiser: Denoiser, shape: Sequence[int], *, sampler: SamplerFactory
    ) -> None:
        self.denoiser = denoiser
        self.shape = tuple(shape)
        self.sampler = sampler

    def sample(self, n: int) -> Tensor:
        """Draws n samples, (n, *shape), from the global generators, on the denoiser's device."""
        device = next(self.denoiser.parameters()).device
        process = self.sampler(denoiser=self.denoiser, silent=True)
        return process(process.init((n, *self.shape), device=device))


def check_sampler(posterior: type[DenoiserPosterior], sampler: SamplerFactory) -> None:
    """Refuses a sampler, or a setting of one, that a posterior would not use.

    Raises:
        UserError: If the posterior draws with another; it names which.
    """
    chosen = sampler.func
    if not (isinstance(chosen, type) and issubclass(chosen, posterior.samplers)):
        fits = " or ".join(s.__name__.removesuffix("Sampler").lower() for s in posterior.samplers)
        raise UserError(
            f"sampler={getattr(chosen, '__name__', chosen)} has no effect on method.posterior="
            f"{posterior.__name__}, whose steps are its own; choose sampler={fits}"
        )


def steps_of(sampler: SamplerFactory) -> int:
    """Returns the number of steps of a sampler of which nothing else is used.

    Raises:
        UserError: If it has other settings.
    """
    if other := sampler.keywords.keys() - {"steps"}:
        raise UserError(f"sampler.{min(other)} has no effect under this method; leave it out")
    return sampler.keywords["steps"]


def require_spectrum(channel: LinearChannel, part: str) -> None:
    """Refuses a channel whose operator has no spectrum at hand.

    Raises:
        UserError: If it has none.
    """
    if not has_spectrum(channel):
        raise UserError(
            f"{part} needs the spectrum of the operator, and {channel} has none; choose "
            "method=diffem or method=em_mmps"
        )


def has_spectrum(channel: LinearChannel) -> bool:
    """Returns whether the spectrum of the channel's operator is at hand."""
    one = channel.forward_operator.draw(1, Generator().manual_seed(0))
    return channel.spectrum(one) is not None


def reconstruct(
    posterior: Posterior,
    measurement: Measurement,
    *,
    size: int,
    key: Sequence[Key],
    device: torch.device | str,
    start: Start | None = None,
) -> Tensor:
    """Draws one reconstruction of each measurement of a chunk, on the CPU, (B, *shape).

    The batch is padded to a constant size by repetition, because a batch's size changes a sample's
    last bits; the noise depends on the key alone.

    Arguments:
        posterior: The posterior.
        measurement: The chunk's measurements, 1 <= B <= size.
        size: The constant batch size.
        key: The key of the noise.
        device: Where to sample.
        start: Earlier reconstructions to draw from; None: from noise alone.
    """
    n = len(measurement.y)
    index = torch.arange(size) % n
    padded = measurement.select(index).to(device)
    with seeded(*key, device=device):
        if start is None:
            x = posterior.draw(padded)
        else:
            x = posterior.redraw(padded, start._replace(x=start.x[index].to(device)))
        return x[:n].float().cpu()


def sample_chunks(
    posterior: Posterior,
    measurements: Measurements,
    n: int,
    *,
    chunk_size: int,
    key: Sequence[Key],
    device: torch.device | str,
) -> Iterator[Tensor]:
    """Yields n samples for each measurement, (n, b, *shape), on the CPU, chunk by chunk.

    Chunks are of like sizes, since the padding of a short one would be a waste. Sample s of the
    chunk that begins at row i is drawn from (*key, s, i) alone.

    Arguments:
        posterior: The posterior.
        measurements: The measurements.
        n: The number of samples of each.
        chunk_size: The largest size of a chunk.
        key: The key of the noise.
        device: Where to sample.
    """
    size = math.ceil(len(measurements) / chunk_count(len(measurements), chunk_size))
    for start in range(0, len(measurements), size):
        chunk = measurements.select(slice(start, start + size))
        yield torch.stack(
            [
                reconstruct(posterior, chunk, size=size, key=(*key, s, start), device=device)
                for s in range(n)
            ]
        )


def chunk_count(count: int, chunk_size: int) -> int:
    """Returns the smallest number of chunks of count rows, each of at most chunk_size."""
    return math.ceil(count / chunk_size)
