"""Posteriors: what draws x ~ p(x | y)."""

from diffem.posterior.posterior import (
    Posterior,
    PosteriorFactory,
    SamplerFactory,
    conditional,
    reconstruct,
    sample_prior,
)

__all__ = [
    "Posterior",
    "PosteriorFactory",
    "SamplerFactory",
    "conditional",
    "reconstruct",
    "sample_prior",
]
