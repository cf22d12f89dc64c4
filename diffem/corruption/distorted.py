"""Distorted channels: y = g_φ(A x + noise), where g is not linear."""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Generator, Tensor

from diffem.corruption.channel import Channel, LinearChannel, Measurement
from diffem.corruption.distortion import Distortion
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
        if linear.learn:
            raise UserError(
                f"corruption.learn={list(linear.learn)} needs a linear channel, and "
                f"{distortions[0]} is none; choose corruption.learn=[]"
            )
        self.linear = linear
        self.distortions = tuple(distortions)
        for distortion in self.distortions:
            distortion.check(linear.forward_operator.measured_shape, linear.noise)
        # y is in the units of x where the operator keeps them: its values are scaled as x is.
        self.keeps_units = linear.forward_operator.preserves_intensity
        one = linear.forward_operator.draw(1, Generator().manual_seed(0))
        self._operator = one.shape[1:]
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
        return self.linear.lift(self.undistorted(measurement))

    def undistorted(self, measurement: Measurement) -> Measurement:
        """Returns y as if the linear channel had given it, without the distortions."""
        return self._split(measurement)[0]

    def _split(self, measurement: Measurement) -> tuple[Measurement, list[Tensor]]:
        """Returns the measurement as one of the linear channel, and φ of each distortion."""
        operator, *parameters = measurement.operator.split(self._sizes, dim=1)
        operator = operator.reshape(len(operator), *self._operator)
        return Measurement(measurement.y, operator, measurement.noise), parameters
