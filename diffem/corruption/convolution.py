"""Convolution: A x = k * x with periodic borders, k of any form."""

from abc import abstractmethod

from torch import Tensor
from torch.fft import fftn, irfftn, rfftn

from diffem.corruption.basis import HartleyBasis
from diffem.corruption.operator import LinearOperator
from diffem.corruption.spectrum import Spectrum
from diffem.runtime.errors import UserError


class Convolution(LinearOperator):
    """Abstract convolution of each channel with one kernel, over periodic borders.

    Real waves are its eigenvectors, so that its spectrum is the kernel's Fourier transform. Where
    an image does not continue at its other side, pixels within a kernel's radius of the border
    are described wrongly: leave that margin out of what is concluded from a reconstruction.

    Arguments:
        shape: The shape of x, (C, *S).

    Raises:
        UserError: If x is a vector.
    """

    preserves_intensity = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        if len(self.shape) < 2:
            raise UserError(
                f"corruption={type(self).__name__} needs images or signals of shape (C, *S), got "
                f"{self.shape}; use corruption=projection, mask or denoising for vectors"
            )
        self.axes = tuple(range(2, len(self.shape) + 1))

    @abstractmethod
    def kernel(self, operator: Tensor) -> Tensor:
        """Returns the kernels of sum 1 on the grid of x, (B, 1, *S) or (1, 1, *S).

        The kernel's centre is at the first pixel; what is left of it stands at the other end.
        """

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        return self._convolve(x, operator, adjoint=False)

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return self._convolve(y, operator, adjoint=True)

    def spectrum(self, operator: Tensor) -> Spectrum:
        square = fftn(self.kernel(operator), dim=self.axes).abs().square()
        return Spectrum(HartleyBasis(self.axes), square)

    def lift(self, y: Tensor, operator: Tensor) -> Tensor:
        return y

    def _convolve(self, x: Tensor, operator: Tensor, *, adjoint: bool) -> Tensor:
        size = x.shape[2:]
        kernel = rfftn(self.kernel(operator).to(x.dtype), dim=self.axes)
        kernel = kernel.conj() if adjoint else kernel
        return irfftn(rfftn(x, dim=self.axes) * kernel, s=size, dim=self.axes)
