"""Channels: a known law q(y | x) that can be drawn again from any image.

    Channel                 draw y ~ q(y | x), embed y for a network: any simulator can be one
    LinearChannel           y = A_φ x + noise: the operator and its adjoint, the noise's variance
    LinearGaussianChannel   y = A_φ x + σ_y ε: the noise's variance without x

The operator's parameters φ (a mask, a blur width, a matrix) and the noise's are drawn afresh for
every sample and kept with the measurement.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self, overload

import torch
from torch import Generator, Tensor

from diffem.corruption.noise import GaussianNoise, Noise
from diffem.corruption.operator import LinearOperator, constant_map, expand
from diffem.corruption.parameter import ChannelParameter
from diffem.corruption.spectrum import Spectrum
from diffem.runtime.errors import UserError

_LEARNED_AS = {"std": "noise"}  # what `learn` calls a noise's parameter, where it has another name


class Measurement(NamedTuple):
    """A batch of measurements and the parameters of the channel that each was drawn with."""

    y: Tensor
    """What was measured, (B, *M)."""
    operator: Tensor
    """The operator's parameters φ, (B, *P); (B, 0) where the operator has none."""
    noise: Tensor
    """The noise's parameters, (B, K); for Gaussian noise σ_y, (B, 1)."""

    @property
    def device(self) -> torch.device:
        """The device of all fields."""
        return self.y.device

    @classmethod
    def of(cls, y: Tensor) -> "Measurement":
        """Returns measurements y, (B, *M), of a channel without parameters."""
        return cls(y, y.new_empty(len(y), 0), y.new_empty(len(y), 0))

    def select(self, index: slice | Tensor) -> "Measurement":
        """Returns the samples at an index along the batch."""
        return Measurement(self.y[index], self.operator[index], self.noise[index])

    def to(self, target: torch.device | torch.dtype | str) -> "Measurement":
        """Moves or casts every field, as torch.Tensor.to does."""
        return Measurement(*(field.to(target) for field in self))


class Channel(ABC):
    """Abstract channel q(y | x).

    Arguments:
        shape: The shape of x: (C, *S) for images and signals, (D,) for vectors.
    """

    learn: tuple[str, ...] = ()
    """The names of the parameters that are learned from the measurements."""

    keeps_units = False
    """Whether y of a channel that is not linear is in the units of x, so that measurements of
    one's own are brought to the scale of [-1, 1] as clean images are."""

    pixelwise = False
    """Whether y has the grid of x, and each of its pixels depends on that pixel of x alone, so
    that a piece of a measurement is the measurement of that piece of x. Of a linear channel its
    operator says so."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    @abstractmethod
    def draw(self, x: Tensor, generator: Generator) -> Measurement:
        """Draws y ~ q(y | x) with fresh parameters and fresh noise.

        Arguments:
            x: Images, (B, *shape), on the generator's device.
            generator: The source of all randomness.
        """

    def scaled(self, factor: float) -> Self:
        """Returns the channel of measurements that were multiplied by a factor.

        One that is not linear and does not keep units stays as it is: so do its measurements.
        """
        return self

    @abstractmethod
    def embed(self, measurement: Measurement) -> Tensor:
        """Returns what a network sees of a measurement, (B, C', *S), C' >= C.

        Its first C channels are y brought on the grid of x.
        """

    def lift(self, measurement: Measurement) -> Tensor:
        """Returns y brought on the grid of x, (B, *shape), for figures and distances."""
        return self.embed(measurement)[:, : self.shape[0]]

    @property
    def surrogate(self) -> "LinearChannel | None":
        """The linear channel that comes nearest, under which round 0 is fitted; None if none does.

        A linear channel is its own.
        """
        return None

    def undistorted(self, measurement: Measurement) -> Measurement:
        """Returns measurements of `surrogate` that say of x about what these do."""
        return measurement

    def nearest_linear(
        self, measurement: Measurement
    ) -> "tuple[LinearChannel, Measurement] | None":
        """Returns the surrogate and its measurements, if they can be fused with x_t.

        None if there is none, or what it says is too rough.
        """
        surrogate = self.surrogate
        return None if surrogate is None else (surrogate, self.undistorted(measurement))

    def doubt(self, measurement: Measurement) -> str | None:
        """Returns why some measurements are hardly of this channel, as a sentence.

        None if they may be, or, as here, if nothing tells.
        """
        return None

    def assume(self, measurement: Measurement) -> Measurement:
        """Returns the measurement with the parameters that this channel takes for known.

        The assumed channel may differ from the one that drew the measurement. A parameter that is
        a range stays each sample's own.
        """
        return measurement

    def __str__(self) -> str:
        return type(self).__name__


class LinearChannel(Channel):
    """y = A_φ x + noise with independent entries and E[y | x] = A_φ x.

    Arguments:
        forward_operator: A.
        noise: The noise model.
        learn: The parameters that are unknown and learned from the measurements (`parameters`
            names them); the channel's own values are where the search starts.

    Raises:
        UserError: If the noise depends on the intensity and A does not keep intensities, or a
            parameter to learn is not one of the channel's, or is a range.
    """

    def __init__(
        self, forward_operator: LinearOperator, noise: Noise, *, learn: Sequence[str] = ()
    ) -> None:
        super().__init__(forward_operator.shape)
        self.forward_operator = forward_operator
        self.noise = noise
        self.learn = tuple(learn)
        if noise.needs_intensity and not forward_operator.preserves_intensity:
            raise UserError(
                f"{noise} needs an operator under which an intensity stays one, and "
                f"{forward_operator} is none; choose corruption/noise=gaussian, or "
                "another corruption"
            )
        self.check_learn()

    @property
    def parameters(self) -> dict[str, ChannelParameter]:
        """The channel's parameters by the names that `learn` uses; `noise` is the noise's std."""
        named = {_LEARNED_AS.get(n, n): p for n, p in self.noise.parameters.items()}
        return {**self.forward_operator.parameters, **named}

    def check_learn(self) -> None:
        """Refuses parameters that the channel does not have, or that are ranges or named twice.

        Raises:
            UserError: If there are any.
        """
        for name in self.learn:
            if self.learn.count(name) > 1:
                raise UserError(f"corruption.learn names {name} twice; name it once")
            if name not in list(self.parameters):  # a list, of which a wrong name may be one
                raise UserError(
                    f"corruption.learn can name {', '.join(self.parameters)} of this corruption, "
                    f"got {name!r}"
                )
            if self.parameters[name].known is None:
                raise UserError(
                    f"{self.parameters[name].name} must be one number, the start, where "
                    f"corruption.learn names it; got {list(self.parameters[name].bounds)}"
                )

    def known(self, name: str) -> float:
        """Returns the value of a parameter that is known or learned."""
        value = self.parameters[name].known
        assert value is not None
        return value

    def with_estimates(self, estimates: Mapping[str, float], *, widen: float = 1.0) -> Self:
        """Returns the channel with estimates for parameters; this channel stays as it is.

        Arguments:
            estimates: Values by the names that `learn` uses.
            widen: New measurements draw these parameters within this factor of their estimates.
        """
        new = copy.copy(self)
        changed = {n: self.parameters[n].estimated(v, widen) for n, v in estimates.items()}
        own = {n: changed.pop(_LEARNED_AS.get(n, n), p) for n, p in self.noise.parameters.items()}
        new.noise = self.noise.with_parameters(own)
        new.forward_operator = self.forward_operator.with_parameters(changed)
        return new

    def __str__(self) -> str:
        return f"{self.forward_operator} with {self.noise}"

    def scaled(self, factor: float) -> Self:
        """Returns the channel of measurements that were multiplied by a factor."""
        new = copy.copy(self)
        new.noise = self.noise.scaled(factor)
        return new

    def with_operator(self, forward_operator: LinearOperator) -> Self:
        """Returns the channel with another forward operator."""
        new = copy.copy(self)
        new.forward_operator = forward_operator
        return new

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        """Returns the noiseless A_φ x, (B, *M), of images (B, *shape)."""
        return self.forward_operator.apply(x, operator)

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        """Returns A_φᵀ y, (B, *shape), of measurements (B, *M)."""
        return self.forward_operator.adjoint(y, operator)

    def measured_mask(self, y: Tensor, operator: Tensor) -> Tensor:
        """Returns 1 where y holds a measured entry and 0 where it holds none, (B, *M)."""
        return self.forward_operator.measured_mask(y, operator)

    def spectrum(self, operator: Tensor) -> Spectrum | None:
        """Returns AᵀA = V diag(s²) Vᵀ for each sample, or None where it is not at hand."""
        return self.forward_operator.spectrum(operator)

    @property
    def surrogate(self) -> "LinearChannel":
        """The channel itself."""
        return self

    def draw(self, x: Tensor, generator: Generator) -> Measurement:
        """Draws φ, the noise's parameters and y, in this order."""
        operator = self.forward_operator.draw(len(x), generator)
        noise = self.noise.draw_parameters(len(x), generator)
        y = self.noise.draw(self.apply(x, operator), noise, generator)
        return Measurement(y * self.measured_mask(y, operator), operator, noise)

    def assume(self, measurement: Measurement) -> Measurement:
        """Returns the measurement with the known parameters in place of the drawn ones."""
        y, operator, noise = measurement
        return Measurement(y, self.forward_operator.assume(operator), self.noise.assume(noise))

    def lift(self, measurement: Measurement) -> Tensor:
        """Returns y brought on the grid of x, (B, *shape)."""
        return self.forward_operator.lift(measurement.y, measurement.operator)

    def embed(self, measurement: Measurement, *, maps: bool = True) -> Tensor:
        """Returns lifted y, the operator's maps and the noise's parameters, (B, C', *S).

        Arguments:
            measurement: The measurements.
            maps: Whether the operator's maps are among it.
        """
        y, operator, noise = measurement
        lifted = self.lift(measurement)
        seen = self.forward_operator.maps(y, operator) if maps else []
        scales = [constant_map(scale, lifted) for scale in self.noise.scales(noise)]
        return torch.cat([lifted, *seen, *scales], dim=1)

    def estimated_variance(self, measurement: Measurement) -> Tensor:
        """Returns V[y | x] with y in place of its mean A x, which broadcasts against y.

        It is exact for Gaussian noise; of photon noise it is an estimate without bias, except
        where the count is below the background.
        """
        return self.noise.variance(measurement.y, measurement.noise)

    def residual_chi2(self, measurement: Measurement, x: Tensor) -> Tensor:
        """Returns Pearson's χ², mean((y - A x)² / V[y | x]) over the measured entries, (B,).

        If x ~ p(x | y) under the true prior, (x, y) has the joint law of clean image and
        measurement, so the residual has exactly the noise's law and this is 1 in expectation. It
        is NaN for a measurement without measured entries.
        """
        total, count = self._chi2(measurement, x)
        return total / count

    def log_likelihood(self, measurement: Measurement, x: Tensor) -> Tensor:
        """Returns log q(y | x) of the measured entries, given the parameters, (B,).

        Of noise that is not Gaussian it is an approximation (`Noise.log_likelihood`).
        """
        y, operator, noise = measurement
        each = self.noise.log_likelihood(y, self.apply(x, operator), noise)
        return (self.measured_mask(y, operator) * each).flatten(1).sum(dim=1)

    def _chi2(self, measurement: Measurement, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the sum of (y - A x)² / V[y | x] over the measured entries, and their number."""
        y, operator, noise = measurement
        mean, measured = self.apply(x, operator), self.measured_mask(y, operator)
        square = measured * (y - mean) ** 2 / self.noise.variance(mean, noise)
        return square.flatten(1).sum(dim=1), measured.flatten(1).sum(dim=1)


class LinearGaussianChannel(LinearChannel):
    """y = A_φ x + σ_y ε, ε ~ N(0, I).

    Arguments:
        forward_operator: A.
        noise: The noise, which draws σ_y.
        learn: As for `LinearChannel`.

    Raises:
        UserError: As `LinearChannel` does.
    """

    noise: GaussianNoise

    def variance(self, measurement: Measurement) -> Tensor:
        """Returns the noise's variance σ_y², which broadcasts against y, (B, 1, …)."""
        return expand(measurement.noise[:, 0] ** 2, measurement.y)

    def square_error(self, measurement: Measurement, x: Tensor) -> Tensor:
        """Returns mean((y - A x)²) over the measured entries of all measurements, ()."""
        total, count = self._chi2(measurement, x)
        return (total * measurement.noise[:, 0] ** 2).sum() / count.sum()

    def log_likelihood(self, measurement: Measurement, x: Tensor) -> Tensor:
        """Returns log q(y | x) of the measured entries, given the parameters, (B,)."""
        total, count = self._chi2(measurement, x)
        return -(total + count * (math.log(2 * math.pi) + 2 * measurement.noise[:, 0].log())) / 2


@overload
def make_channel(
    forward_operator: LinearOperator, noise: GaussianNoise, *, learn: Sequence[str] = ()
) -> LinearGaussianChannel: ...
@overload
def make_channel(
    forward_operator: LinearOperator, noise: Noise, *, learn: Sequence[str] = ()
) -> LinearChannel: ...
def make_channel(
    forward_operator: LinearOperator, noise: Noise, *, learn: Sequence[str] = ()
) -> LinearChannel:
    """Returns the linear channel of an operator and a noise model, of the narrowest class."""
    gaussian = isinstance(noise, GaussianNoise)
    return (LinearGaussianChannel if gaussian else LinearChannel)(
        forward_operator, noise, learn=learn
    )


NEEDS = {
    LinearChannel: ("a linear channel", "choose a corruption with a linear operator"),
    LinearGaussianChannel: (
        "a linear channel with Gaussian noise",
        "choose method=diffem, which takes every channel, or a corruption with a linear operator "
        "and corruption/noise=gaussian",
    ),
}


def require(channel: Channel, needed: type[Channel], part: str) -> None:
    """Refuses a channel that a part of a run cannot work with.

    Arguments:
        channel: The channel.
        needed: The class of channels that the part works with.
        part: What needs it, as the sentence begins.

    Raises:
        UserError: If the channel is of another class; it names what fits.
    """
    if not isinstance(channel, needed):
        needs, advice = NEEDS[needed]
        raise UserError(f"{part} needs {needs}, got {channel}; {advice}")


def require_pixelwise(channel: Channel, part: str, advice: str) -> None:
    """Refuses a channel whose measurements cannot be cut into pieces.

    Arguments:
        channel: The channel.
        part: What cuts them, as the sentence begins.
        advice: What to do, as it ends.

    Raises:
        UserError: If a pixel of y depends on others of x, or may do so.
    """
    own = channel.forward_operator if isinstance(channel, LinearChannel) else channel
    if not own.pixelwise:
        raise UserError(
            f"{part} needs a corruption of each pixel by itself, as denoising and mask are (of "
            f"your own: pixelwise = True), and under {channel} a pixel at an edge of a piece may "
            f"depend on what is beyond it; {advice}"
        )
