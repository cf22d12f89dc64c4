"""Conditioning: the inputs derived from a measurement that a denoiser is conditioned on."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from diffem.corruption import ENTRIES, Channel, LinearChannel, Measurement, Spectrum
from diffem.corruption.operator import expand
from diffem.denoiser.consistency import Consistency
from diffem.runtime.errors import UserError


class Condition(NamedTuple):
    """What a denoiser of p(x | x_t, y) is given of y."""

    embedding: Tensor
    """What the network sees, (B, C', *S)."""
    spectrum: Spectrum
    """The basis in which y measures the coefficients z = Vᵀ x one by one."""
    precision: Tensor
    """The inverse variance s² / σ_y² of each measured coefficient, against (B, *shape)."""
    information: Tensor
    """Precision times measured value, Vᵀ Aᵀ y / σ_y², against (B, *shape)."""
    consistency: Consistency | None = None
    """What y says of x where its operator has no spectrum."""

    def masked(self, keep: Tensor) -> "Condition":
        """Returns the condition of the samples where keep, (B,), is 1, and none where it is 0."""
        weight = expand(keep, self.embedding)
        return Condition(
            self.embedding * weight,
            self.spectrum,
            self.precision * weight,
            self.information * weight,
            None if self.consistency is None else self.consistency.masked(keep),
        )


def embedding_only(embedding: Tensor) -> Condition:
    """Returns the condition that reaches the denoiser by its embedding, (B, C', *S), alone."""
    zero = torch.zeros((), device=embedding.device)
    return Condition(embedding, Spectrum(ENTRIES, zero), zero, zero)


def measured_coefficients(
    channel: LinearChannel, measurement: Measurement, spectrum: Spectrum, var: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what measurements say of each coefficient z = Vᵀ x, in the basis of AᵀA.

    Arguments:
        channel: The channel.
        measurement: The measurements.
        spectrum: The spectrum of their operators.
        var: The noise's variance σ_y², which broadcasts against y.

    Returns:
        The precision s² / σ_y² and the information Vᵀ Aᵀ y / σ_y² of the coefficients, which
        broadcast against (B, *shape). Both are 0 where s² is so small that Vᵀ Aᵀ y is mostly the
        rounding error of what the others measured.
    """
    At_y = channel.adjoint(measurement.y, measurement.operator)
    if spectrum.basis == ENTRIES:
        return spectrum.square / var, At_y / var
    if var.shape == measurement.y.shape:
        # V diagonalises AᵀA, but not Aᵀ diag(var)⁻¹ A: one variance for each sample.
        var = expand(var.flatten(1).mean(dim=1), At_y)
    square, information = spectrum.square, spectrum.analyse(At_y)
    largest = expand(square.expand_as(At_y).flatten(1).amax(dim=1), At_y)
    measured = square > 10 * torch.finfo(At_y.dtype).eps * largest
    return square * measured / var, information * measured / var


def told_share(channel: LinearChannel, measurement: Measurement) -> tuple[Tensor, Spectrum]:
    """Returns which share of each coefficient's variance measurements tell, if it is 1 before.

    Arguments:
        channel: The channel, whose operator has a spectrum.
        measurement: The measurements.

    Returns:
        p / (1 + p) of the coefficients' precision p, in [0, 1), which broadcasts against
        (B, *shape), and the spectrum whose coefficients these are.
    """
    spectrum = channel.spectrum(measurement.operator)
    assert spectrum is not None
    variance = channel.estimated_variance(measurement)
    precision, _ = measured_coefficients(channel, measurement, spectrum, variance)
    return precision / (1 + precision), spectrum


class Conditioning:
    """How a denoiser is conditioned on a measurement.

    Arguments:
        maps: Whether the network sees the operator (the mask, the blur's width, the matrix). The
            embedding of a channel that is not linear is its own: nothing can be left out.
        fuse: Whether y is fused with x_t before the network or, where the operator has no
            spectrum, with what the network makes of x_t; otherwise y reaches the denoiser by its
            embedding alone, as in the paper. None fuses where the channel is linear or comes
            near to one that is. Noise that is not Gaussian is fused by the variance that y itself
            suggests, and y of a channel that is not linear as one of the linear channel that
            comes nearest: this preconditions the network and loses nothing, since the network
            sees y too.
    """

    def __init__(self, *, maps: bool = True, fuse: bool | None = None) -> None:
        self.maps = maps
        self.fuse = fuse

    def __call__(
        self, channel: Channel, measurement: Measurement, *, spectrum: Spectrum | None = None
    ) -> Condition:
        """Returns the condition that a measurement gives.

        Arguments:
            channel: The channel.
            measurement: The measurement.
            spectrum: The spectrum of its operator, if it is at hand already.

        Raises:
            UserError: If the channel does not allow what `maps` or `fuse` asks for.
        """
        if isinstance(channel, LinearChannel):
            embedding = channel.embed(measurement, maps=self.maps)
        elif self.maps:
            embedding = channel.embed(measurement)
        else:
            raise UserError(
                f"method.condition.maps=false needs a linear channel, got {channel}; set it "
                "to true"
            )
        nearest = None if self.fuse is False else channel.nearest_linear(measurement)
        if nearest is not None:
            linear, seen = nearest
            var = linear.estimated_variance(seen)
            if spectrum is None:
                spectrum = linear.spectrum(seen.operator)
            if spectrum is None:
                consistency = Consistency.of(linear, seen, var)
                return embedding_only(embedding)._replace(consistency=consistency)
            fused = measured_coefficients(linear, seen, spectrum, var)
            return Condition(embedding, spectrum, *fused)
        if self.fuse:
            raise UserError(
                "method.condition.fuse=true needs a channel that is linear, or distortions that "
                "can be undone (saturation, quantisation, gamma, impulse, rician) after what "
                "scales each entry by itself, as denoising and mask do; got "
                f"{channel}; set it to null"
            )
        return embedding_only(embedding)

    def channels(self, channel: Channel) -> int:
        """Returns the number C' of channels of the embedding.

        Raises:
            UserError: If the channel does not allow what `maps` or `fuse` asks for, or `maps` has
                no effect on it.
        """
        one = channel.draw(torch.zeros(1, *channel.shape), Generator().manual_seed(0))
        if not self.maps and isinstance(channel, LinearChannel):
            if not channel.forward_operator.maps(one.y, one.operator):
                raise UserError(
                    f"method.condition.maps=false has no effect on {channel}, whose operator has "
                    "no maps; leave it out"
                )
        return self(channel, one).embedding.shape[1]
