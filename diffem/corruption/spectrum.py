"""Spectrum of a linear operator: AᵀA = V diag(s²) Vᵀ, with V orthonormal along each axis of x."""

from typing import NamedTuple

import torch
from torch import Tensor


class Spectrum(NamedTuple):
    """The basis in which a measurement y = A x + σ_y ε measures each coefficient of x by itself.

    With z = Vᵀ x, y is worth one measurement of variance σ_y² / s² of each entry of z.
    """

    axes: tuple[tuple[int, Tensor], ...]
    """Axes of the batch (B, *shape) and the matrix V along each, (B, L, L) or (1, L, L)."""
    square: Tensor
    """The squared singular values s², which broadcast against (B, *shape)."""

    def analyse(self, x: Tensor) -> Tensor:
        """Returns the coefficients z = Vᵀ x, (B, *shape)."""
        return self._along_axes(x, "bij,bi...->bj...")

    def synthesise(self, z: Tensor) -> Tensor:
        """Returns x = V z, (B, *shape)."""
        return self._along_axes(z, "bij,bj...->bi...")

    def _along_axes(self, x: Tensor, equation: str) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            for axis, matrix in self.axes:
                matrix = matrix.to(x.dtype).expand(len(x), -1, -1)
                x = torch.einsum(equation, matrix, x.movedim(axis, 1)).movedim(1, axis)
        return x
