"""Gaussian blur: A x = k_σ * x, separable, with reflected borders; perhaps on a coarser grid."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.corruption.basis import MatrixBasis
from diffem.corruption.downsample import checked_factor, repeated
from diffem.corruption.operator import LinearOperator, constant_map, full_precision
from diffem.corruption.parameter import ChannelParameter
from diffem.corruption.spectrum import Spectrum
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


class Blur(LinearOperator):
    """Blurs each axis by a truncated Gaussian kernel of the sample's own width.

    Each axis is one matrix K(σ) of the kernel's weights with the border's reflection folded in,
    so that A x = K x Kᵀ in 2-D and the adjoint is exact: Kᵀ y K. A detector with larger pixels
    averages the blurred image over blocks, which is part of the same matrix.

    Arguments:
        shape: The shape of x, (C, *S).
        sigma: The kernel's standard deviation in pixels, > 0, or a range (low, high).
        kernel_size: The kernel's length in pixels, odd and less than twice the shortest side.
        factor: The side of a block that is averaged to one pixel of y; it divides every side of
            x. 1 leaves the grid as it is.

    Raises:
        UserError: If sigma is not positive, the kernel is even, too small or too large, or the
            factor does not divide every side.
    """

    preserves_intensity = True

    def __init__(
        self,
        shape: Sequence[int],
        *,
        sigma: float | Sequence[float],
        kernel_size: int,
        factor: int = 1,
    ) -> None:
        super().__init__(shape)
        self.sigma = ChannelParameter.of("corruption.sigma", sigma)
        if len(self.shape) < 2:
            raise UserError(
                f"corruption=blur needs images or signals of shape (C, *S), got {self.shape}; "
                "use corruption=projection, mask or denoising for vectors"
            )
        largest = 2 * min(self.shape[1:]) - 1
        check("corruption.kernel_size", kernel_size)
        if kernel_size % 2 == 0 or kernel_size > largest:
            raise UserError(
                f"corruption.kernel_size must be odd and in [1, {largest}] for images of shape "
                f"{self.shape}, got {kernel_size}"
            )
        self.radius = kernel_size // 2
        self.factor = checked_factor(factor, self.shape)

    @property
    def parameters(self) -> dict[str, ChannelParameter]:
        return {"sigma": self.sigma}

    def draw(self, n: int, generator: Generator) -> Tensor:
        return self.sigma.draw(n, generator)[:, None]

    def assume(self, operator: Tensor) -> Tensor:
        return self.sigma.assume(operator)

    def fault(self, operator: Tensor) -> str | None:
        return self.sigma.fault(operator.flatten())

    def matrix(self, sigma: Tensor, length: int) -> Tensor:
        """Returns the blur of an axis as matrices, (B, L / factor, L), for widths sigma, (B,)."""
        offset = torch.arange(-self.radius, self.radius + 1, device=sigma.device)
        weight = torch.exp(-((offset / sigma[:, None]) ** 2) / 2)
        weight = weight / weight.sum(dim=1, keepdim=True)
        row = torch.arange(length, device=sigma.device)[:, None].expand(-1, len(offset))
        column = (row + offset).abs()  # reflect at the first pixel …
        column = (length - 1) - (length - 1 - column).abs()  # … and at the last
        matrix = weight.new_zeros(len(sigma), length, length)
        # One index pair can stand twice (a kernel that is reflected onto itself): accumulate.
        index = (torch.arange(len(sigma), device=sigma.device)[:, None, None], row, column)
        matrix.index_put_(index, weight[:, None].expand(-1, length, -1), accumulate=True)
        return matrix.unflatten(1, (-1, self.factor)).mean(dim=2)

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        return self._along_axes(x, operator, transpose=False)

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return self._along_axes(y, operator, transpose=True)

    @full_precision
    def spectrum(self, operator: Tensor) -> Spectrum:
        sigma = operator[:, 0]
        if self.sigma.bounds[0] == self.sigma.bounds[1]:
            sigma = sigma[:1]  # one width for all samples: decompose it once
        axes, square = [], torch.ones(len(sigma), 1, device=sigma.device)
        for axis, side in enumerate(self.shape[1:], start=2):
            matrix = self.matrix(sigma, side)
            value, v = torch.linalg.eigh(matrix.mT @ matrix)
            axes.append((axis, v))
            value = value.clamp(min=0).reshape(-1, *(1,) * (axis - 1), side)
            square = square[..., None] * value
        return Spectrum(MatrixBasis(tuple(axes)), square)

    def lift(self, y: Tensor, operator: Tensor) -> Tensor:
        return repeated(y, self.factor)

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        return [constant_map(operator[:, 0], self.lift(y, operator))]

    @full_precision
    def _along_axes(self, x: Tensor, operator: Tensor, *, transpose: bool) -> Tensor:
        for axis in range(2, x.ndim):
            matrix = self.matrix(operator[:, 0].to(x.dtype), self.shape[axis - 1])
            equation = "bji,b...j->b...i" if transpose else "bij,b...j->b...i"
            x = torch.einsum(equation, matrix, x.movedim(axis, -1)).movedim(-1, axis)
        return x
