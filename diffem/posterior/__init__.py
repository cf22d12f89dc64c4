"""Posteriors: what draws x ~ p(x | y), and priors, which draw x ~ p(x)."""

from diffem.posterior.ambient import Restoration
from diffem.posterior.conditional import Conditional
from diffem.posterior.covariance import Isotropic, PrincipalComponents
from diffem.posterior.diffpir import DiffPIR
from diffem.posterior.dps import DPS
from diffem.posterior.gaussian import GaussianPosterior
from diffem.posterior.gibbs import SplitGibbs
from diffem.posterior.mixture import MixturePosterior
from diffem.posterior.mmps import MMPS
from diffem.posterior.one_step import OneStepSampler
from diffem.posterior.pigdm import PiGDM
from diffem.posterior.posterior import (
    DenoiserPosterior,
    Posterior,
    Prior,
    SamplerFactory,
    Start,
    reconstruct,
    sample_chunks,
)
from diffem.posterior.reflected import Reflected, ReflectedSampler
from diffem.posterior.sde import SDESampler

__all__ = [
    "DPS",
    "MMPS",
    "Conditional",
    "DenoiserPosterior",
    "DiffPIR",
    "GaussianPosterior",
    "Isotropic",
    "MixturePosterior",
    "OneStepSampler",
    "PiGDM",
    "Posterior",
    "PrincipalComponents",
    "Prior",
    "Reflected",
    "ReflectedSampler",
    "Restoration",
    "SDESampler",
    "SamplerFactory",
    "SplitGibbs",
    "Start",
    "reconstruct",
    "sample_chunks",
]
