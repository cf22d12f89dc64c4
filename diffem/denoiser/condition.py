"""Conditioning: what a denoiser is told of an observation."""

from typing import NamedTuple

import torch
from torch import Tensor

from diffem.corruption import Corruption, Observation, Spectrum
from diffem.corruption.base import expand


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


def condition_on(corruption: Corruption, observation: Observation) -> Condition:
    """Returns the condition that an observation gives.

    Where the operator's spectrum is not at hand, y reaches the denoiser by its embedding alone.
    """
    y, operator, std = observation
    embedding = corruption.embed(observation)
    spectrum = corruption.spectrum(operator)
    if spectrum is None:
        zero = torch.zeros((), device=y.device)
        return Condition(embedding, Spectrum((), zero), zero, zero)
    back = corruption.adjoint(y, operator)
    var = expand(std**2, back)
    return Condition(embedding, spectrum, spectrum.square / var, spectrum.analyse(back) / var)
