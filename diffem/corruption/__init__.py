"""Channels q(y | x) that can be drawn again from any image: forward operators and noise models."""

from diffem.corruption.blur import Blur
from diffem.corruption.channel import (
    Channel,
    LinearChannel,
    LinearGaussianChannel,
    Measurement,
    make_channel,
    require,
)
from diffem.corruption.denoising import Denoising
from diffem.corruption.downsample import Downsample
from diffem.corruption.mask import Mask
from diffem.corruption.noise import GaussianNoise, Noise, PoissonGaussianNoise, PoissonNoise
from diffem.corruption.operator import LinearOperator
from diffem.corruption.parameter import ChannelParameter
from diffem.corruption.projection import Projection
from diffem.corruption.spectrum import Spectrum

__all__ = [
    "Blur",
    "Channel",
    "ChannelParameter",
    "Denoising",
    "Downsample",
    "GaussianNoise",
    "LinearChannel",
    "LinearGaussianChannel",
    "LinearOperator",
    "Mask",
    "Measurement",
    "Noise",
    "PoissonGaussianNoise",
    "PoissonNoise",
    "Projection",
    "Spectrum",
    "make_channel",
    "require",
]
