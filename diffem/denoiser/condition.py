"""Conditioning: what a denoiser is told of a measurement."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from diffem.corruption import Corruption, Measurement, Spectrum
from diffem.corruption.channel import expand


class Condition(NamedTuple):
    """What a denoiser of p(x | x_t, y) is told of y."""

    embedding: Tensor
    """What the network sees, (B, C', *S)."""
    spectrum: Spectrum
    """The basis in which y measures the coefficients z = Vᵀ x one by one."""
    precision: Tensor
    """The inverse variance s² / σ_y² of each measured coefficient, against (B, *shape)."""
    information: Tensor
    """Precision times measured value, Vᵀ Aᵀ y / σ_y², against (B, *shape)."""

    def kept(self, keep: Tensor) -> "Condition":
        """Returns the condition of the samples where keep, (B,), is 1, and none where it is 0."""
        weight = expand(keep, self.embedding)
        return Condition(
            self.embedding * weight,
            self.spectrum,
            self.precision * weight,
            self.information * weight,
        )


def unfused(embedding: Tensor) -> Condition:
    """Returns the condition that reaches the denoiser by its embedding, (B, C', *S), alone."""
    zero = torch.zeros((), device=embedding.device)
    return Condition(embedding, Spectrum((), zero), zero, zero)


class Conditioning:
    """How a measurement is made known to a denoiser.

    Arguments:
        maps: Whether the network sees the operator (the mask, the blur's width, the matrix).
        fuse: Whether y is fused with x_t before the network, where the operator's spectrum is at
            hand; otherwise y reaches the denoiser by its embedding alone, as in the paper.
    """

    def __init__(self, *, maps: bool = True, fuse: bool = True) -> None:
        self.maps = maps
        self.fuse = fuse

    def __call__(self, corruption: Corruption, measurement: Measurement) -> Condition:
        """Returns the condition that a measurement gives."""
        y, operator, std = measurement
        embedding = corruption.embed(measurement, maps=self.maps)
        spectrum = corruption.spectrum(operator) if self.fuse else None
        if spectrum is None:
            return unfused(embedding)
        back = corruption.adjoint(y, operator)
        var = expand(std**2, back)
        return Condition(embedding, spectrum, spectrum.square / var, spectrum.analyse(back) / var)

    def channels(self, corruption: Corruption) -> int:
        """Returns the number C' of channels of the embedding."""
        one = corruption.draw(torch.zeros(1, *corruption.shape), Generator().manual_seed(0))
        return corruption.embed(one, maps=self.maps).shape[1]
