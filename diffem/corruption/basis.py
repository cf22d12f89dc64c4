"""Orthonormal bases V of images, by whose coefficients z = Vᵀ x an operator is described."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.fft import fftn, ifftn


class Basis(Protocol):
    """An orthonormal basis of images (B, *shape): one for all samples, or one for each."""

    @property
    def number(self) -> int:
        """1 if all samples have one basis, otherwise their number B."""
        ...

    def analyse(self, x: Tensor) -> Tensor:
        """Returns the coefficients z = Vᵀ x, (B, *shape)."""
        ...

    def synthesise(self, z: Tensor) -> Tensor:
        """Returns x = V z, (B, *shape)."""
        ...

    def select(self, index: Tensor) -> "Basis":
        """Returns the basis of the samples at an index."""
        ...


class MatrixBasis(NamedTuple):
    """A matrix along each of some axes; without any, the entries of x themselves."""

    axes: tuple[tuple[int, Tensor], ...]
    """Axes of the batch (B, *shape) and the matrix V along each, (B, L, L) or (1, L, L)."""

    @property
    def number(self) -> int:
        return max((len(matrix) for _, matrix in self.axes), default=1)

    def analyse(self, x: Tensor) -> Tensor:
        return self._along_axes(x, "bij,bi...->bj...")

    def synthesise(self, z: Tensor) -> Tensor:
        return self._along_axes(z, "bij,bj...->bi...")

    def select(self, index: Tensor) -> "MatrixBasis":
        return MatrixBasis(tuple((axis, m if len(m) == 1 else m[index]) for axis, m in self.axes))

    def _along_axes(self, x: Tensor, equation: str) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            for axis, matrix in self.axes:
                matrix = matrix.to(x.dtype).expand(len(x), -1, -1)
                x = torch.einsum(equation, matrix, x.movedim(axis, 1)).movedim(1, axis)
        return x


ENTRIES = MatrixBasis(())
"""The entries of x themselves: V = I."""


class HartleyBasis(NamedTuple):
    """The real waves cas(k·n) = cos(k·n) + sin(k·n) over some axes; V is its own inverse.

    They are the eigenvectors of every convolution with a symmetric kernel and periodic borders,
    such as AᵀA of any convolution A: its eigenvalue at k, which is that at -k, is the kernel's
    Fourier coefficient. Hartley 1942; Bracewell 1983.
    """

    axes: tuple[int, ...]
    """Axes of the batch (B, *shape)."""

    @property
    def number(self) -> int:
        return 1

    def analyse(self, x: Tensor) -> Tensor:
        wave = fftn(x, dim=self.axes, norm="ortho")
        return wave.real - wave.imag

    def synthesise(self, z: Tensor) -> Tensor:
        return self.analyse(z)

    def select(self, index: Tensor) -> "HartleyBasis":
        return self


class FourierBasis(NamedTuple):
    """The Fourier coefficients over some axes of complex images, whose channels are (re, im)."""

    axes: tuple[int, ...]
    """Axes of the batch (B, 2, *S), from 2 on."""

    @property
    def number(self) -> int:
        return 1

    def analyse(self, x: Tensor) -> Tensor:
        return as_channels(fftn(as_complex(x), dim=self._spatial, norm="ortho"))

    def synthesise(self, z: Tensor) -> Tensor:
        return as_channels(ifftn(as_complex(z), dim=self._spatial, norm="ortho"))

    def select(self, index: Tensor) -> "FourierBasis":
        return self

    @property
    def _spatial(self) -> tuple[int, ...]:
        return tuple(axis - 1 for axis in self.axes)  # complex images have no axis of channels


def as_complex(x: Tensor) -> Tensor:
    """Returns images (B, 2, *S) of real and imaginary parts as complex ones, (B, *S)."""
    return torch.complex(x[:, 0], x[:, 1])


def as_channels(x: Tensor) -> Tensor:
    """Returns complex images (B, *S) as channels of real and imaginary parts, (B, 2, *S)."""
    return torch.stack([x.real, x.imag], dim=1)
