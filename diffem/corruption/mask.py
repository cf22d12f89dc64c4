"""Masking: y = m ⊙ (x + σ_y ε),  m ~ Bernoulli(1 - ρ) for each pixel."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.corruption.channel import Corruption, Measurement
from diffem.corruption.noise import GaussianNoise
from diffem.corruption.spectrum import Spectrum
from diffem.runtime.errors import check_fraction


class Mask(Corruption):
    """Removes pixels at random, all channels of a pixel together.

    Arguments:
        shape: The shape of x, (C, *S) or (D,).
        noise: The noise on the pixels that are left.
        rho: Fraction of pixels removed, in [0, 1).
        learn: The levels to learn: `noise`.

    Raises:
        UserError: If rho is outside [0, 1).
    """

    def __init__(
        self,
        shape: Sequence[int],
        noise: GaussianNoise,
        *,
        rho: float,
        learn: Sequence[str] = (),
    ) -> None:
        super().__init__(shape, noise, learn=learn)
        self.rho = check_fraction("corruption.rho", rho)
        # A vector has no channels that could share a mask.
        self.mask_shape = (1, *self.shape[1:]) if len(self.shape) > 1 else self.shape

    def draw_operator(self, n: int, generator: Generator) -> Tensor:
        u = torch.rand(n, *self.mask_shape, generator=generator, device=generator.device)
        return (u >= self.rho).float()

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        return operator * x

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return operator * y

    def observed(self, y: Tensor, operator: Tensor) -> Tensor:
        return operator.expand_as(y)

    def spectrum(self, operator: Tensor) -> Spectrum:
        return Spectrum((), operator)

    def maps(self, measurement: Measurement) -> list[Tensor]:
        return [measurement.operator]
