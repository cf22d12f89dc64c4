"""Denoisers: networks conditioned on an observation, and the samplers that they define."""

from diffem.denoiser.condition import Condition, condition_on
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
    "Denoiser",
    "Posterior",
    "PosteriorFactory",
    "SamplerFactory",
    "condition_on",
    "conditional",
    "reconstruct",
    "sample_prior",
]
