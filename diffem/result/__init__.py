"""The result of a run as an object: samplers of p(x | y) and p(x) in the data's own units."""

from diffem.result.parts import (
    build_channel,
    build_denoiser,
    build_posterior,
    build_prior,
    build_sampler,
    sampler_bounds,
)
from diffem.result.result import PosteriorSampler, PriorSampler, Result, load, restore
from diffem.result.tiled import TiledSampler
from diffem.result.weights import Description, Weights, read_weights, write_weights

__all__ = [
    "Description",
    "PosteriorSampler",
    "PriorSampler",
    "Result",
    "TiledSampler",
    "Weights",
    "build_channel",
    "build_denoiser",
    "build_posterior",
    "build_prior",
    "build_sampler",
    "load",
    "read_weights",
    "restore",
    "sampler_bounds",
    "write_weights",
]
