"""Masking: A x = m ⊙ x,  m ~ Bernoulli(1 - ρ) for each pixel."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.corruption.basis import ENTRIES
from diffem.corruption.operator import LinearOperator, must_be_among, thinned
from diffem.corruption.spectrum import Spectrum
from diffem.runtime.ranges import check


class Mask(LinearOperator):
    """Removes pixels at random, all channels of a pixel together.

    Arguments:
        shape: The shape of x, (C, *S) or (D,).
        rho: Fraction of pixels removed, in [0, 1).

    Raises:
        UserError: If rho is outside [0, 1).
    """

    preserves_intensity = True  # where it measures anything
    covers = True
    keeps_coefficients = True
    pixelwise = True

    def __init__(self, shape: Sequence[int], *, rho: float) -> None:
        super().__init__(shape)
        self.rho = check("corruption.rho", rho)
        # A vector has no channels that could share a mask.
        self.mask_shape = (1, *self.shape[1:]) if len(self.shape) > 1 else self.shape

    def draw(self, n: int, generator: Generator) -> Tensor:
        u = torch.rand(n, *self.mask_shape, generator=generator, device=generator.device)
        return (u >= self.rho).float()

    def fault(self, operator: Tensor) -> str | None:
        return must_be_among(operator, (0, 1), "1 where a pixel was measured")

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        return operator * x

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return operator * y

    def measured_mask(self, y: Tensor, operator: Tensor) -> Tensor:
        return operator.expand_as(y)

    def leave_out(self, operator: Tensor, fraction: float, generator: Generator) -> Tensor:
        return thinned(operator, fraction, generator)

    def spectrum(self, operator: Tensor) -> Spectrum:
        return Spectrum(ENTRIES, operator)

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        return [operator]
