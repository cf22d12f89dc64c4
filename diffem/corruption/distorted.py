"""Distorted channels: y = g_φ(A x + noise), where g is not linear."""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Generator, Tensor

from diffem.corruption.channel import Channel, LinearChannel, Measurement, make_channel
from diffem.corruption.composition import Composition
from diffem.corruption.distortion import Distortion
from diffem.corruption.noise import GaussianNoise
from diffem.corruption.operator import expand
from diffem.corruption.weighting import Weighting
from diffem.runtime.errors import UserError


class DistortedChannel(Channel):
    """A linear channel whose measurements go through distortions, one after another.

    Only what learns from draws of a channel works with it, as DiffEM does. The parameters φ of
    the operator and of the distortions are carried side by side, flattened.

    Arguments:
        linear: The channel before the distortions.
        distortions: What follows its noise.

    Raises:
        UserError: If the linear channel learns parameters, whose likelihood is not known here, or
            a distortion does not take its measurements.
    """

    def __init__(self, linear: LinearChannel, distortions: Sequence[Distortion]) -> None:
        super().__init__(linear.shape)
        check_learns_nothing(linear.learn, distortions[0])
        self.linear = linear
        self.distortions = tuple(distortions)
        for distortion in self.distortions:
            distortion.check(linear.forward_operator.measured_shape, linear.noise)
        # y is in the units of x where the operator keeps them: its values are scaled as x is.
        self.keeps_units = linear.forward_operator.preserves_intensity
        one = linear.forward_operator.draw(1, Generator().manual_seed(0))
        self._operator = one.shape[1:]
        known = [type(each).undo is not Distortion.undo for each in distortions]
        self._any_undone, self._all_undone = any(known), all(known)
        self._diagonal = linear.forward_operator.pixelwise and _is_diagonal(linear, one)
        self._sizes = [one[0].numel(), *(len(d.parameters) for d in self.distortions)]
        # What φ has of each pixel is flattened here, and could not be cut.
        self.pixelwise = (
            linear.forward_operator.pixelwise
            and not self._sizes[0]
            and all(each.pixelwise for each in distortions)
        )

    def __str__(self) -> str:
        return " then ".join([str(self.linear), *(str(d) for d in self.distortions)])

    def scaled(self, factor: float) -> Self:
        """Returns the channel of measurements that were multiplied by a factor."""
        new = copy.copy(self)
        new.linear = self.linear.scaled(factor)
        return new

    def draw(self, x: Tensor, generator: Generator) -> Measurement:
        """Draws the linear channel's measurement, and then φ and y of each distortion."""
        y, operator, noise = self.linear.draw(x, generator)
        measured = self.linear.measured_mask(y, operator)
        parameters = [operator.flatten(1)]
        for distortion in self.distortions:
            parameters.append(distortion.draw(len(x), generator))
            y = distortion.apply(y, parameters[-1], noise, generator)
        return Measurement(y * measured, torch.cat(parameters, dim=1), noise)

    def assume(self, measurement: Measurement) -> Measurement:
        """Returns the measurement with the known parameters in place of the drawn ones."""
        linear, parameters = self._split(measurement)
        _, operator, noise = self.linear.assume(linear)
        assumed = [
            distortion.assume(phi)
            for distortion, phi in zip(self.distortions, parameters, strict=True)
        ]
        return Measurement(measurement.y, torch.cat([operator.flatten(1), *assumed], dim=1), noise)

    def embed(self, measurement: Measurement) -> Tensor:
        """Returns what the linear channel embeds, and the distortions' parameters as maps."""
        linear, parameters = self._split(measurement)
        embedding = self.linear.embed(linear)
        seen = torch.cat(parameters, dim=1)
        maps = seen.reshape(*seen.shape, *(1,) * (embedding.ndim - 2))
        return torch.cat([embedding, maps.expand(-1, -1, *embedding.shape[2:])], dim=1)

    def lift(self, measurement: Measurement) -> Tensor:
        """Returns y brought on the grid of x, (B, *shape)."""
        return self.linear.lift(self._split(measurement)[0])

    @property
    def surrogate(self) -> LinearChannel | None:
        """The linear channel of `undistorted` measurements; None if A does not keep intensities.

        It is `linear` where no distortion can be undone; otherwise linear and Gaussian, with
        noise of each entry's own standard deviation.
        """
        if not self.keeps_units:
            return None
        if not self._any_undone:
            return self.linear
        operator = self.linear.forward_operator
        weighting = Weighting(operator.measured_shape, ratio=1.0)
        weighted = weighting if self._diagonal else Composition([operator, weighting])
        return make_channel(weighted, GaussianNoise(1.0))

    def undistorted(self, measurement: Measurement) -> Measurement:
        """Returns measurements of `surrogate` that say of x about what these do.

        They are what is known of A x + noise, by `Distortion.undo`: its mean, whose variance is
        added to the noise's. Distortions that cannot be undone are left out of account.
        """
        linear, parameters = self._split(measurement)
        if not self._any_undone:
            return linear
        y, operator, noise = linear
        mean, variance = y, torch.zeros_like(y)
        for distortion, phi in zip(reversed(self.distortions), reversed(parameters), strict=True):
            mean, variance = distortion.undo(mean, variance, phi, noise) or (mean, variance)
        variance = variance + self.linear.noise.variance(mean, noise)
        # White noise, of which each measurement has the smallest variance of its entries.
        variance = variance.clamp(min=torch.finfo(y.dtype).tiny)
        smallest = variance.flatten(1).amin(dim=1)
        weights = (expand(smallest, variance) / variance).sqrt()
        weights = weights * self.linear.measured_mask(y, operator)
        if self._diagonal:
            seen = weights * self.linear.apply(torch.ones_like(y), operator)
        else:
            seen = torch.cat([operator.flatten(1), weights.flatten(1)], dim=1)
        return Measurement(weights * mean, seen, smallest.sqrt()[:, None])

    def nearest_linear(self, measurement: Measurement) -> tuple[LinearChannel, Measurement] | None:
        """Returns the surrogate and its measurements.

        None if there is none, a distortion cannot be undone, or an operator that mixes entries
        was before it: the surrogate has no spectrum then, and what it says is too rough to correct
        an output by.
        """
        fits = self._all_undone and self._diagonal
        return super().nearest_linear(measurement) if fits else None

    def _split(self, measurement: Measurement) -> tuple[Measurement, list[Tensor]]:
        """Returns the measurement as one of the linear channel, and φ of each distortion."""
        operator, *parameters = measurement.operator.split(self._sizes, dim=1)
        operator = operator.reshape(len(operator), *self._operator)
        return Measurement(measurement.y, operator, measurement.noise), parameters


def check_learns_nothing(learn: Sequence[str], what: object) -> None:
    """Refuses parameters to learn of a channel that is not linear.

    Arguments:
        learn: The names of the parameters.
        what: The channel, or what makes it so.

    Raises:
        UserError: If there are any.
    """
    if learn:
        raise UserError(
            f"corruption.learn={list(learn)} needs a linear channel, and {what} is "
            "none; choose corruption.learn=[]"
        )


def _is_diagonal(linear: LinearChannel, operator: Tensor) -> bool:
    """Returns whether A_φ x = a ⊙ x for the operator's parameters φ of one sample, (1, …)."""
    one = torch.ones(1, *linear.shape)
    ramp = torch.linspace(-1, 1, one.numel()).reshape(one.shape)
    image = linear.apply(ramp, operator)
    return image.shape == one.shape and torch.equal(image, ramp * linear.apply(one, operator))
