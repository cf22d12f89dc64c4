"""Reflected diffusion: noise that is folded at the bounds, so that x_t is an image like any other.

Lou & Ermon (2023, arXiv 2304.04740) add Brownian motion that is reflected at the borders of
[-1, 1]: x_t = fold(x + σ_t z), whose law becomes uniform as σ_t grows. Of each entry, with the
period 4 of the fold,

    p(x_t | x) = Σ_k N(x_t; x + 4k, σ²) + N(x_t; 2 - x + 4k, σ²)        few terms if σ is small
               = ½ + Σ_n e^{-(nπσ)²/8} cos(nπ(x + 1)/2) cos(nπ(x_t + 1)/2)        if it is large

    m = x_t + σ² ∂ log p(x_t | x) / ∂x_t

By the first line m is the mean of x and of its images in the mirrors, weighted by how probable x_t
is from each; without borders m = x. A denoiser that is trained to predict m learns E[m | x_t], and
(E[m | x_t] - x_t) / σ² is the score of x_t, by denoising score matching (Vincent 2011).
"""

import math

import torch
from azula.noise import Schedule
from torch import Tensor

from diffem.corruption.operator import expand

SWITCH = 0.6  # the σ from which on waves are summed: there both sums are exact to 1e-6
IMAGES = ((1, -4), (1, 0), (1, 4), (-1, -2), (-1, 2))  # a x + b: all that is near for σ < 0.6
WAVES = 8  # of the others the factor is below 1e-15 for σ > 0.6


def fold(x: Tensor) -> Tensor:
    """Returns x reflected at -1 and 1 until it lies in [-1, 1], which holds exactly."""
    return 1 - (torch.remainder(x + 1, 4) - 2).abs()


def reflected_mean(x: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
    """Returns m = x_t + σ² ∂ log p(x_t | x) / ∂x_t, (B, *shape).

    Arguments:
        x: Images in [-1, 1], (B, *shape).
        x_t: Noisy images in [-1, 1], (B, *shape).
        sigma: The noise level σ > 0, which broadcasts against x.
    """
    near = torch.stack([a * x + b for a, b in IMAGES])
    probability = torch.softmax(-((x_t - near) ** 2) / (2 * sigma**2), dim=0)
    density, slope = torch.full_like(x, 0.5), torch.zeros_like(x)
    for n in range(1, WAVES + 1):
        k = n * math.pi / 2
        wave = torch.exp(-((k * sigma) ** 2) / 2) * torch.cos(k * (x + 1))
        density = density + wave * torch.cos(k * (x_t + 1))
        slope = slope - k * wave * torch.sin(k * (x_t + 1))
    # Where σ is small the sum of waves may be 0; its quotient is not used there.
    far = x_t + sigma**2 * slope / torch.where(sigma < SWITCH, 1, density)
    return torch.where(sigma < SWITCH, (probability * near).sum(dim=0), far)


def reflect(schedule: Schedule, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns folded x_t and m, what a denoiser of them predicts, each (B, *shape).

    Arguments:
        schedule: A schedule with α_t = 1.
        x: Images in [-1, 1], (B, *shape); noise is drawn from the global generators.
        t: Times in [0, 1], (B,).
    """
    sigma = expand(schedule(t)[1], x)
    x_t = fold(x + sigma * torch.randn_like(x))
    return x_t, reflected_mean(x, x_t, sigma)
