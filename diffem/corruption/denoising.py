"""Noise alone: y = x + σ_y ε."""

from torch import Tensor

from diffem.corruption.channel import Corruption
from diffem.corruption.spectrum import Spectrum


class Denoising(Corruption):
    """Leaves x as it is, so that only the noise corrupts it (denoising)."""

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return y

    def spectrum(self, operator: Tensor) -> Spectrum:
        return Spectrum((), operator.new_ones(()))
