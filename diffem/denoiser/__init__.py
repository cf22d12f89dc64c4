"""Denoisers: networks conditioned on an observation, and the samplers that they define."""

from diffem.denoiser.condition import Condition, Conditioning
from diffem.denoiser.denoiser import Denoiser
from diffem.denoiser.posterior import (
    Posterior,
    PosteriorFactory,
    SamplerFactory,
    conditional,
    reconstruct,
    sample_prior,
)
from diffem.denoiser.times import BetaMixture

__all__ = [
    "BetaMixture",
    "Condition",
    "Conditioning",
    "Denoiser",
    "Posterior",
    "PosteriorFactory",
    "SamplerFactory",
    "conditional",
    "reconstruct",
    "sample_prior",
]
