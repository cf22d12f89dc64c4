"""Spectrum of a linear operator: AᵀA = V diag(s²) Vᵀ, with an orthonormal basis V."""

from typing import NamedTuple

from torch import Tensor

from diffem.corruption.basis import Basis


class Spectrum(NamedTuple):
    """The basis in which a measurement y = A x + σ_y ε measures each coefficient of x by itself.

    With z = Vᵀ x, y is worth one measurement of variance σ_y² / s² of each entry of z.
    """

    basis: Basis
    """V; `ENTRIES` where A measures each entry of x by itself."""
    square: Tensor
    """The squared singular values s², which broadcast against (B, *shape)."""

    def analyse(self, x: Tensor) -> Tensor:
        """Returns the coefficients z = Vᵀ x, (B, *shape)."""
        return self.basis.analyse(x)

    def synthesise(self, z: Tensor) -> Tensor:
        """Returns x = V z, (B, *shape)."""
        return self.basis.synthesise(z)
