"""Magnitude: g(u) = |u| of complex values, whose phase is lost."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.corruption.distortion import Distortion
from diffem.corruption.noise import Noise
from diffem.runtime.errors import UserError


class Magnitude(Distortion):
    """The modulus of complex values, as intensity detectors have it; phase retrieval.

    u has real and imaginary parts as pairs of channels, in this order; y has the modulus in the
    first of each pair and 0 in the second.
    """

    def check(self, shape: Sequence[int], noise: Noise) -> None:
        if len(shape) < 2 or shape[0] % 2:
            raise UserError(
                "diffem.corruption.Magnitude needs complex values, whose real and imaginary parts "
                f"are pairs of channels, got the shape {tuple(shape)}; put "
                "diffem.corruption.Fourier before it in corruption.parts"
            )

    def apply(self, u: Tensor, parameters: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        modulus = u.unflatten(1, (-1, 2)).norm(dim=2)
        return torch.stack([modulus, torch.zeros_like(modulus)], dim=2).flatten(1, 2)
