"""Noise alone: A x = x."""

from torch import Tensor

from diffem.corruption.basis import ENTRIES
from diffem.corruption.operator import LinearOperator
from diffem.corruption.spectrum import Spectrum


class Denoising(LinearOperator):
    """Leaves x as it is, so that only the noise corrupts it."""

    preserves_intensity = True
    pixelwise = True

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return y

    def spectrum(self, operator: Tensor) -> Spectrum:
        return Spectrum(ENTRIES, operator.new_ones(()))
