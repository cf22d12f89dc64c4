"""Downsampling: A x = average pooling of x by a factor."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

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
        sides = self.shape[1:]
        check("corruption.factor", factor)
        if not sides or any(side % factor for side in sides):
            raise UserError(
                f"corruption.factor must divide every side of the images, whose shape is "
                f"{self.shape}, got {factor}"
            )
        self.factor = factor

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        for axis in range(2, x.ndim):
            x = x.unflatten(axis, (-1, self.factor)).mean(dim=axis + 1)
        return x

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return self._repeat(y) / self.factor ** (y.ndim - 2)

    def lift(self, y: Tensor, operator: Tensor) -> Tensor:
        return self._repeat(y)

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
        return Spectrum(tuple(axes), square)

    def _repeat(self, y: Tensor) -> Tensor:
        for axis in range(2, y.ndim):
            y = y.repeat_interleave(self.factor, dim=axis)
        return y
