"""Channels q(y | x) that can be drawn again from any image: forward operators and noise models."""

from diffem.corruption.basis import ENTRIES, Basis
from diffem.corruption.blur import Blur
from diffem.corruption.channel import (
    Channel,
    LinearChannel,
    LinearGaussianChannel,
    Measurement,
    make_channel,
    require,
    require_pixelwise,
)
from diffem.corruption.coils import estimate_coils
from diffem.corruption.composition import Composition
from diffem.corruption.deepinv import DeepInverse
from diffem.corruption.denoising import Denoising
from diffem.corruption.distorted import DistortedChannel
from diffem.corruption.distortion import Distortion
from diffem.corruption.downsample import Downsample
from diffem.corruption.fourier import Fourier
from diffem.corruption.gamma import Gamma
from diffem.corruption.impulse import Impulse
from diffem.corruption.jpeg import JPEG
from diffem.corruption.mask import Mask
from diffem.corruption.mosaic import Mosaic
from diffem.corruption.motion_blur import MotionBlur
from diffem.corruption.multicoil import MultiCoil
from diffem.corruption.noise import (
    GaussianNoise,
    Noise,
    PoissonGaussianNoise,
    PoissonNoise,
    SpeckleNoise,
)
from diffem.corruption.operator import LinearOperator
from diffem.corruption.parameter import ChannelParameter
from diffem.corruption.phase_retrieval import PhaseRetrieval
from diffem.corruption.point_spread import PointSpread
from diffem.corruption.projection import Projection
from diffem.corruption.quantisation import Quantisation
from diffem.corruption.radon import Radon
from diffem.corruption.rician import Rician
from diffem.corruption.saturation import Saturation
from diffem.corruption.spectrum import Spectrum
from diffem.corruption.weighting import Weighting
from diffem.corruption.windows import Windows

__all__ = [
    "ENTRIES",
    "JPEG",
    "Basis",
    "Blur",
    "Channel",
    "ChannelParameter",
    "Composition",
    "DeepInverse",
    "Denoising",
    "DistortedChannel",
    "Distortion",
    "Downsample",
    "Fourier",
    "Gamma",
    "GaussianNoise",
    "Impulse",
    "LinearChannel",
    "LinearGaussianChannel",
    "LinearOperator",
    "Mask",
    "Measurement",
    "Mosaic",
    "MotionBlur",
    "MultiCoil",
    "Noise",
    "PhaseRetrieval",
    "PointSpread",
    "PoissonGaussianNoise",
    "PoissonNoise",
    "Projection",
    "Quantisation",
    "Radon",
    "Rician",
    "Saturation",
    "SpeckleNoise",
    "Spectrum",
    "Weighting",
    "Windows",
    "estimate_coils",
    "make_channel",
    "require",
    "require_pixelwise",
]
