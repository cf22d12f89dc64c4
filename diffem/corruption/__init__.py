"""Corruptions: channels q(y | x) that can be drawn again from any image."""

from diffem.corruption.blur import Blur
from diffem.corruption.channel import Corruption, Measurement
from diffem.corruption.denoising import Denoising
from diffem.corruption.downsample import Downsample
from diffem.corruption.mask import Mask
from diffem.corruption.noise import GaussianNoise
from diffem.corruption.projection import Projection
from diffem.corruption.spectrum import Spectrum

__all__ = [
    "Blur",
    "Corruption",
    "Denoising",
    "Downsample",
    "GaussianNoise",
    "Mask",
    "Measurement",
    "Projection",
    "Spectrum",
]
