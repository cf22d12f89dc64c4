"""Weighting: A x = w ⊙ x, which makes noise of every pixel's own white."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.corruption.basis import ENTRIES
from diffem.corruption.operator import LinearOperator, thinned
from diffem.corruption.parameter import ChannelParameter
from diffem.corruption.spectrum import Spectrum


class Weighting(LinearOperator):
    """Measurements whose noise has another standard deviation σ(p) at each pixel p.

    Of y = x + σ(p) ε, the product w ⊙ y with w = σ_y / σ(p) is w ⊙ x + σ_y ε: a linear
    measurement with white noise. A weight of 0 says that a pixel was not measured. Measurements
    of one's own come with σ(p) as `std`; a benchmark draws it.

    Arguments:
        shape: The shape of x, (C, *S) or (D,).
        ratio: σ(p) / σ_y, one number or a range [low, high] that each pixel draws its own from.
    """

    covers = True
    pixelwise = True

    def __init__(self, shape: Sequence[int], *, ratio: float | Sequence[float]) -> None:
        super().__init__(shape)
        self.ratio = ChannelParameter.of("corruption.ratio", ratio)

    def draw(self, n: int, generator: Generator) -> Tensor:
        pixels = torch.Size((n, *self.shape))
        return 1 / self.ratio.draw(pixels.numel(), generator).reshape(pixels)

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        return operator * x

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return operator * y

    def measured_mask(self, y: Tensor, operator: Tensor) -> Tensor:
        return (operator > 0).to(y.dtype)

    def leave_out(self, operator: Tensor, fraction: float, generator: Generator) -> Tensor:
        return thinned(operator, fraction, generator)

    def lift(self, y: Tensor, operator: Tensor) -> Tensor:
        return torch.where(operator > 0, y / operator.clamp(min=torch.finfo(y.dtype).tiny), 0)

    def spectrum(self, operator: Tensor) -> Spectrum:
        return Spectrum(ENTRIES, operator.square())

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        return [operator]
