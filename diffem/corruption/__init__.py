"""Corruptions: channels q(y | x) that can be drawn again from any image."""

from diffem.corruption.base import Corruption, Observation
from diffem.corruption.blur import Blur
from diffem.corruption.downsample import Downsample
from diffem.corruption.identity import Identity
from diffem.corruption.mask import Mask
from diffem.corruption.noise import GaussianNoise
from diffem.corruption.projection import Projection
from diffem.corruption.spectrum import Spectrum

__all__ = [
    "Blur",
    "Corruption",
    "Downsample",
    "GaussianNoise",
    "Identity",
    "Mask",
    "Observation",
    "Projection",
    "Spectrum",
]
