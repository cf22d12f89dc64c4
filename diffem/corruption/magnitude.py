"""Magnitude: g(u) = |u| of complex values, whose phase is lost."""

import torch
from torch import Generator, Tensor

from diffem.corruption.distortion import Distortion


class Magnitude(Distortion):
    """The modulus of complex values, as intensity detectors have it; phase retrieval.

    u has real and imaginary parts as pairs of channels, in this order; y has the modulus in the
    first of each pair and 0 in the second.
    """

    def apply(self, u: Tensor, parameters: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        modulus = u.unflatten(1, (-1, 2)).norm(dim=2)
        return torch.stack([modulus, torch.zeros_like(modulus)], dim=2).flatten(1, 2)
