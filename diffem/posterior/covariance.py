"""Covariances V[x | x_t] that guidance takes for the denoiser's uncertainty.

Rozet et al. (2024, arXiv 2405.13712) compare Tweedie's formula, V = σ_t²/α_t ∂x̂/∂x_t, with three
heuristics that cost no derivative. With a prior covariance Σ_x all three are

    V = (Σ_x⁻¹ + α_t²/σ_t²)⁻¹,   Σ_x = I (`identity`),  ∞ (`cov_t`),  that of the data (`cov_x`)
"""

from typing import Protocol

import torch
from torch import Tensor

from diffem.runtime.ranges import check


class Heuristic(Protocol):
    """A covariance V[x | x_t] = U diag(v) Uᵀ + w (I - U Uᵀ) that does not depend on x_t."""

    def fitted(self, x: Tensor) -> "Heuristic":
        """Returns the covariance with moments of reconstructions x, (n, *shape)."""
        ...

    def __call__(self, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns U, (D, R), v, (R,), and w, (), at a precision α_t²/σ_t², ()."""
        ...


class Isotropic:
    """V = (1 / variance + α_t²/σ_t²)⁻¹ I.

    Arguments:
        variance: The prior variance; 1 for `identity` (and ΠGDM's r_t²), infinity for `cov_t`.
    """

    def __init__(self, variance: float = 1.0) -> None:
        self.variance = check("method.posterior.covariance.variance", variance)

    def fitted(self, x: Tensor) -> "Isotropic":
        """Returns itself: nothing is fitted."""
        return self

    def __call__(self, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns no directions, and the variance of all."""
        empty = precision.new_zeros(0)
        return empty[None], empty, 1 / (1 / self.variance + precision)


class PrincipalComponents:
    """Σ_x of the round's reconstructions: R principal components and an isotropic rest.

    Probabilistic PCA (Tipping & Bishop 1999).

    Arguments:
        rank: The largest number R of components.
    """

    def __init__(self, rank: int) -> None:
        self.rank = check("method.posterior.covariance.rank", rank)
        self.vectors = self.values = torch.zeros(0)
        self.rest = torch.ones(())

    def fitted(self, x: Tensor) -> "PrincipalComponents":
        """Returns the covariance of x, (n, *shape)."""
        flat = x.flatten(1).double()
        flat = flat - flat.mean(dim=0)
        _, singular, vectors = torch.linalg.svd(flat, full_matrices=False)
        values = singular**2 / len(flat)
        kept = min(self.rank, len(values) - 1)
        left = flat.shape[1] - kept
        new = PrincipalComponents(self.rank)
        new.vectors, new.values = vectors[:kept].mT.float(), values[:kept].float()
        new.rest = (values[kept:].sum() / left).clamp(min=1e-6).float()
        return new

    def __call__(self, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the components, the variance of each and that of the rest."""
        vectors, values, rest = (s.to(precision) for s in (self.vectors, self.values, self.rest))
        return vectors, 1 / (1 / values + precision), 1 / (1 / rest + precision)
