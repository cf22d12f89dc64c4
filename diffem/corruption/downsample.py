"""Downsampling: A x = average pooling of x by a factor."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffem.corruption.basis import MatrixBasis
from diffem.corruption.operator import LinearOperator
from diffem.corruption.spectrum import Spectrum
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


class Downsample(LinearOperator):
    """Averages blocks of factor × factor pixels.

    Arguments:
        shape: The shape of x, (C, *S).
        factor: The side of a block in pixels; it divides every side of x.

    Raises:
        UserError: If the factor does not divide every side.
    """

    preserves_intensity = True

    def __init__(self, shape: Sequence[int], *, factor: int) -> None:
        super().__init__(shape)
        self.factor = checked_factor(factor, self.shape)

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        for axis in range(2, x.ndim):
            x = x.unflatten(axis, (-1, self.factor)).mean(dim=axis + 1)
        return x

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return repeated(y, self.factor) / self.factor ** (y.ndim - 2)

    def lift(self, y: Tensor, operator: Tensor) -> Tensor:
        return repeated(y, self.factor)

    def spectrum(self, operator: Tensor) -> Spectrum:
        # Along an axis, blocks of f pixels: their mean is the first of f orthonormal cosines,
        # divided by √f, and the others average to nothing.
        f = self.factor
        n = torch.arange(f, device=operator.device)
        cosines = torch.cos(math.pi * (2 * n[:, None] + 1) * n / (2 * f)) * math.sqrt(2 / f)
        cosines[:, 0] /= math.sqrt(2)
        axes, square = [], torch.ones((), device=operator.device)
        for axis, side in enumerate(self.shape[1:], start=2):
            v = torch.kron(torch.eye(side // f, device=operator.device), cosines)
            axes.append((axis, v[None]))
            measured = (torch.arange(side, device=operator.device) % f == 0) / f
            square = square[..., None] * measured
        return Spectrum(MatrixBasis(tuple(axes)), square)


def checked_factor(factor: int, shape: Sequence[int]) -> int:
    """Returns the side of the blocks that are averaged.

    Arguments:
        factor: The side in pixels.
        shape: The shape of an image, (C, *S).

    Raises:
        UserError: If it does not divide every side of the image.
    """
    check("corruption.factor", factor)
    if len(shape) < 2 or any(side % factor for side in shape[1:]):
        raise UserError(
            "corruption.factor must divide every side of the images, whose shape is "
            f"{tuple(shape)}, got {factor}"
        )
    return factor


def repeated(y: Tensor, factor: int) -> Tensor:
    """Returns images (B, C, *S) whose pixels are repeated along every side, (B, C, *factor·S)."""
    for axis in range(2, y.ndim):
        y = y.repeat_interleave(factor, dim=axis)
    return y
