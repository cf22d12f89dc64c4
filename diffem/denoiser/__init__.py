"""Denoisers: networks conditioned on an observation, and the samplers that they define."""

from diffem.denoiser.condition import Condition, condition_on
from diffem.denoiser.denoiser import Denoiser
from diffem.denoiser.posterior import (
    Posterior,
    SamplerFactory,
    posterior,
    reconstruct,
    sample_prior,
)
from diffem.denoiser.times import BetaMixture

__all__ = [
    "BetaMixture",
    "Condition",
    "Denoiser",
    "Posterior",
    "SamplerFactory",
    "condition_on",
    "posterior",
    "reconstruct",
    "sample_prior",
]
