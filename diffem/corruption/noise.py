"""Noise models: y ~ p(y | A x) with parameters that are known, drawn per sample, or learned.

Each noise model has independent entries, the mean A x and a variance that depends on A x alone.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Generator, Tensor

from diffem.corruption.operator import expand
from diffem.corruption.parameter import ChannelParameter, assume_each, draw_each
from diffem.runtime.ranges import check

Split = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Two measurements, each with its noise's parameters."""


class Noise(ABC):
    """Abstract noise model of independent entries, E[y | A x] = A x.

    Attributes:
        needs_intensity: Whether it depends on the intensity, so that it needs an operator of which
            `preserves_intensity` is true.
        lowest: The value of A x below which y says nothing of it; None if there is none.
    """

    needs_intensity = False
    lowest: float | None = None

    def __str__(self) -> str:
        return type(self).__name__

    @property
    @abstractmethod
    def parameters(self) -> dict[str, ChannelParameter]:
        """The parameters in the order in which a measurement carries them."""

    def with_parameters(self, parameters: Mapping[str, ChannelParameter]) -> Self:
        """Returns a copy with other parameters; this noise stays as it is."""
        new = copy.copy(self)
        for name, parameter in parameters.items():
            setattr(new, name, parameter)
        return new

    def scaled(self, factor: float) -> Self:
        """Returns the noise of measurements that were multiplied by a factor."""
        std = self.parameters.get("std")
        return self if std is None else self.with_parameters({"std": std.scaled(factor)})

    def draw_parameters(self, n: int, generator: Generator) -> Tensor:
        """Draws the parameters of n samples, (n, K)."""
        return draw_each(self.parameters, n, generator)

    def assume(self, noise: Tensor) -> Tensor:
        """Returns parameters (B, K) with the known ones in place of the drawn ones."""
        return assume_each(self.parameters, noise)

    @abstractmethod
    def scales(self, noise: Tensor) -> list[Tensor]:
        """Returns what a network sees of the parameters (B, K): standard deviations, each (B,)."""

    @abstractmethod
    def draw(self, mean: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        """Draws y, (B, *M).

        Arguments:
            mean: A x, (B, *M).
            noise: The parameters, (B, K).
            generator: The source of all randomness.
        """

    def draw_paired(self, mean: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        """Draws y by the law of `draw`, from common random numbers.

        From generators of one seed, means that are near one another give measurements that are.

        Arguments:
            mean: A x, (B, *M).
            noise: The parameters, (B, K).
            generator: The source of all randomness, on the CPU.
        """
        return self.draw(mean, noise, generator)  # the noise added is of the same numbers

    @abstractmethod
    def variance(self, mean: Tensor, noise: Tensor) -> Tensor:
        """Returns V[y | A x], which broadcasts against the mean A x, (B, *M)."""

    def split(
        self, y: Tensor, noise: Tensor, fraction: float, generator: Generator
    ) -> Split | None:
        """Splits y into two independent measurements of the same A x, if that can be done.

        Both have noise of this kind, and the second has a fraction of the information: data
        fission (Leiner et al. 2023, 2112.11079).

        Arguments:
            y: The measurements, (B, *M).
            noise: Their parameters, (B, K).
            fraction: The second's share of the inverse variance, in (0, 1).
            generator: The source of all randomness.

        Returns:
            The two measurements and the parameters of each; None where this noise has no split.
        """
        return None

    def log_likelihood(self, y: Tensor, mean: Tensor, noise: Tensor) -> Tensor:
        """Returns log N(y; A x, V[y | A x]) of each entry, (B, *M).

        Of noise that is not Gaussian it stands for log q(y | A x). It has the noise's mean and
        variance, so that its derivative by any parameter is 0 in expectation at the truth, as
        that of log q(y | A x) is (Wedderburn 1974, quasi-likelihood functions).

        Arguments:
            y: The measurements, (B, *M).
            mean: A x, (B, *M).
            noise: The parameters, (B, K).
        """
        variance = self.variance(mean, noise)
        return -((y - mean) ** 2 / variance + (2 * math.pi * variance).log()) / 2


class GaussianNoise(Noise):
    """White Gaussian noise, y = A x + σ_y ε, ε ~ N(0, I).

    Arguments:
        std: The standard deviation σ_y in the units of x (images in [-1, 1]), > 0, or a range
            (low, high) that each sample draws its own from.

    Raises:
        UserError: If std is not positive.
    """

    def __init__(self, std: float | Sequence[float]) -> None:
        self.std = ChannelParameter.of("corruption.noise.std", std)

    @property
    def parameters(self) -> dict[str, ChannelParameter]:
        return {"std": self.std}

    def scales(self, noise: Tensor) -> list[Tensor]:
        return [noise[:, 0]]

    def draw(self, mean: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        epsilon = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + expand(noise[:, 0], mean) * epsilon

    def variance(self, mean: Tensor, noise: Tensor) -> Tensor:
        return expand(noise[:, 0] ** 2, mean)

    def split(self, y: Tensor, noise: Tensor, fraction: float, generator: Generator) -> Split:
        """Returns y + a σ_y ε and y - σ_y ε / a, with a² = f / (1 - f)."""
        a = math.sqrt(fraction / (1 - fraction))
        added = expand(noise[:, 0], y) * torch.randn(y.shape, generator=generator, device=y.device)
        rest = (y + a * added, noise / math.sqrt(1 - fraction))
        return rest, (y - added / a, noise / math.sqrt(fraction))


class PoissonNoise(Noise):
    """Photon counting: y = 2 (n - b) / λ - 1,  n ~ Poisson(λ I + b),  I = (A x + 1) / 2.

    The intensity I of an image in [-1, 1] is in [0, 1]; below 0 it is taken for 0. The mean of y
    is A x and its variance 4 (λ I + b) / λ².

    Arguments:
        photons: The expected number λ of photons of a pixel at full intensity, x = 1, > 0, or a
            range (low, high) that each sample draws its own from.
        background: The expected number b of counts without light (dark current), > 0; it is known
            and subtracted. It keeps the variance of a dark pixel above 0.

    Raises:
        UserError: If a number is not positive.
    """

    needs_intensity = True
    lowest = -1.0

    def __init__(self, photons: float | Sequence[float], background: float = 1.0) -> None:
        self.photons = ChannelParameter.of("corruption.noise.photons", photons)
        self.background = float(check("corruption.noise.background", background))

    @property
    def parameters(self) -> dict[str, ChannelParameter]:
        return {"photons": self.photons}

    def scales(self, noise: Tensor) -> list[Tensor]:
        return [2 / noise[:, 0].sqrt()]  # at full intensity, without background

    def draw(self, mean: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        photons = expand(noise[:, 0], mean)
        count = torch.poisson(self._rate(mean, photons), generator=generator)
        return self._measured(count, photons)

    def draw_paired(self, mean: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        photons = expand(noise[:, 0], mean)
        uniform = torch.rand(mean.shape, generator=generator, dtype=torch.float64)
        count = poisson_quantile(uniform, self._rate(mean, photons).double())
        return self._measured(count.to(mean), photons)

    def variance(self, mean: Tensor, noise: Tensor) -> Tensor:
        photons = expand(noise[:, 0], mean)
        return 4 * self._rate(mean, photons) / photons**2

    def split(
        self, y: Tensor, noise: Tensor, fraction: float, generator: Generator
    ) -> Split | None:
        """Returns the counts thinned at random, each part with counts of its own for the dark."""
        photons = expand(noise[:, 0], y)
        count = (photons * (y + 1) / 2 + self.background).round().clamp(min=0)
        count = count.double()  # of a fraction near 0, float32 would round 1 - f by percents of f
        kept = torch.binomial(count, torch.full_like(count, 1 - fraction), generator=generator)
        parts = []
        for part, share in ((kept, 1 - fraction), (count - kept, fraction)):
            dark = torch.full_like(y, (1 - share) * self.background)
            part = part.to(y) + torch.poisson(dark, generator=generator)
            parts.append((2 * (part - self.background) / (share * photons) - 1, share * noise))
        return parts[0], parts[1]

    def _measured(self, count: Tensor, photons: Tensor) -> Tensor:
        return 2 * (count - self.background) / photons - 1

    def _rate(self, mean: Tensor, photons: Tensor) -> Tensor:
        return photons * ((mean + 1) / 2).clamp(min=0) + self.background


def poisson_quantile(probability: Tensor, rate: Tensor) -> Tensor:
    """Returns the smallest count n with P(N <= n) >= p, N ~ Poisson(r), by bisection.

    Arguments:
        probability: p in [0, 1), float64.
        rate: r > 0, float64, of the same shape.
    """
    low = torch.full_like(rate, -1.0)
    high = (rate + 10 * rate.sqrt() + 50).ceil()  # beyond, P(N <= n) is 1 in float64
    while bool((high - low > 1).any()):
        middle = ((low + high) / 2).ceil()
        # Γ(n + 1, r) / n!, the distribution function of N.
        enough = torch.special.gammaincc(middle + 1, rate) >= probability
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


class PoissonGaussianNoise(PoissonNoise):
    """Photon counting and a camera's read-out noise: y = 2 (n - b) / λ - 1 + σ_y ε.

    Arguments:
        photons: λ, as for `PoissonNoise`.
        std: The read-out noise's standard deviation σ_y in the units of x, > 0, or a range.
        background: b, as for `PoissonNoise`.

    Raises:
        UserError: If a number is not positive.
    """

    def __init__(
        self,
        photons: float | Sequence[float],
        std: float | Sequence[float],
        background: float = 1.0,
    ) -> None:
        super().__init__(photons, background)
        self.std = ChannelParameter.of("corruption.noise.std", std)

    @property
    def parameters(self) -> dict[str, ChannelParameter]:
        return {**super().parameters, "std": self.std}

    def scales(self, noise: Tensor) -> list[Tensor]:
        return [*super().scales(noise), noise[:, 1]]

    def draw(self, mean: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        return self._read_out(super().draw(mean, noise, generator), noise, generator)

    def draw_paired(self, mean: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        return self._read_out(super().draw_paired(mean, noise, generator), noise, generator)

    def variance(self, mean: Tensor, noise: Tensor) -> Tensor:
        return super().variance(mean, noise) + expand(noise[:, 1] ** 2, mean)

    def split(self, y: Tensor, noise: Tensor, fraction: float, generator: Generator) -> None:
        """Returns None: counts and read-out noise cannot be told apart."""

    def _read_out(self, y: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        epsilon = torch.randn(y.shape, generator=generator, device=y.device)
        return y + expand(noise[:, 1], y) * epsilon


class SpeckleNoise(Noise):
    """Multiplicative noise and a little white noise: y = 2 I (1 + κ ε_1) - 1 + σ_y ε_2.

    I = (A x + 1) / 2 is the intensity, taken for 0 below 0; coherent imaging (radar, ultrasound)
    averages over 1/κ² looks. The variance of y is 4 κ² I² + σ_y².

    Arguments:
        speckle: κ, the noise's standard deviation relative to the intensity, > 0, or a range
            (low, high) that each sample draws its own from.
        std: The white noise's standard deviation σ_y in the units of x, > 0, or a range; it keeps
            the variance of a dark pixel above 0.

    Raises:
        UserError: If a number is not positive.
    """

    needs_intensity = True

    def __init__(self, speckle: float | Sequence[float], std: float | Sequence[float]) -> None:
        self.speckle = ChannelParameter.of("corruption.noise.speckle", speckle)
        self.std = ChannelParameter.of("corruption.noise.std", std)

    @property
    def parameters(self) -> dict[str, ChannelParameter]:
        return {"speckle": self.speckle, "std": self.std}

    def scales(self, noise: Tensor) -> list[Tensor]:
        return [noise[:, 0], noise[:, 1]]

    def draw(self, mean: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        epsilon = torch.randn(2, *mean.shape, generator=generator, device=mean.device)
        speckle = 2 * self._intensity(mean) * expand(noise[:, 0], mean) * epsilon[0]
        return mean + speckle + expand(noise[:, 1], mean) * epsilon[1]

    def variance(self, mean: Tensor, noise: Tensor) -> Tensor:
        speckle = 2 * self._intensity(mean) * expand(noise[:, 0], mean)
        return speckle.square() + expand(noise[:, 1] ** 2, mean)

    def _intensity(self, mean: Tensor) -> Tensor:
        return ((mean + 1) / 2).clamp(min=0)
