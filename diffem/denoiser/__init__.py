"""Denoisers: networks that predict E[x | x_t, y]."""

from diffem.denoiser.condition import Condition, Conditioning
from diffem.denoiser.denoiser import Denoiser, Perturbation, add_noise
from diffem.denoiser.tiles import TiledDenoiser
from diffem.denoiser.times import BetaMixture

__all__ = [
    "BetaMixture",
    "Condition",
    "Conditioning",
    "Denoiser",
    "Perturbation",
    "TiledDenoiser",
    "add_noise",
]
