"""Rician noise: g(u) is the modulus of u and of as much noise in an imaginary part."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.corruption.distortion import Distortion
from diffem.corruption.noise import GaussianNoise, Noise
from diffem.corruption.operator import expand
from diffem.runtime.errors import UserError


class Rician(Distortion):
    """Magnitude images of MRI: y = 2 |I + σ (ε_1 + i ε_2)| - 1,  I = (A x + 1) / 2.

    The channel's Gaussian noise is ε_1, of standard deviation σ_y = 2 σ on the scale of [-1, 1];
    this adds ε_2 and takes the modulus. Gudbjartsson and Patz 1995.
    """

    pixelwise = True

    def check(self, shape: Sequence[int], noise: Noise) -> None:
        if not isinstance(noise, GaussianNoise):
            raise UserError(
                f"corruption=rician needs Gaussian noise in each part of a complex value, got "
                f"{noise}; choose corruption/noise=gaussian"
            )

    def apply(self, u: Tensor, parameters: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        epsilon = torch.randn(u.shape, generator=generator, device=u.device)
        return torch.hypot(u + 1, expand(noise[:, 0], u) * epsilon) - 1

    def undo(
        self, mean: Tensor, variance: Tensor, parameters: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        # The square of the modulus is that of u + 1 and σ_y² ε_2²; ε_2² has mean 1 and variance 2.
        level = expand(noise[:, 0] ** 2, mean)
        square = (mean + 1).square()
        spread = level.square() / (2 * square.maximum(level))
        return (square - level).clamp(min=0).sqrt() - 1, variance + spread
