"""Ambient Diffusion (Daras et al. 2023, arXiv 2305.19256): no EM, a second mask on the first.

The denoiser h(Ã x_t, Ã, t) sees the pixels of a further mask Ã = B A and is trained to predict
what the mask A left, so that it learns E[x | Ã x_t, Ã] of every pixel from masked images alone.
"""

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from torch import Tensor

from diffem.corruption import Corruption, Measurement
from diffem.denoiser.condition import unfused
from diffem.denoiser.denoiser import Denoiser
from diffem.posterior.gibbs import time_of
from diffem.posterior.posterior import Posterior, SamplerFactory


class MaskedDenoiser(AzulaDenoiser):
    """h(Ã x_t, Ã, t): a denoiser that sees x_t through a mask.

    Arguments:
        denoiser: A denoiser whose network takes the mask as its embedding.
        mask: Ã, (B, 1, *S).
    """

    def __init__(self, denoiser: Denoiser, mask: Tensor) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.mask = mask

    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:  # type: ignore[override]
        """Returns E[x | Ã x_t, Ã], (B, *shape), as a Dirac posterior."""
        return self.denoiser(self.mask * x_t, t, unfused(self.mask))


def restoration(
    denoiser: Denoiser,
    corruption: Corruption,
    x: Tensor | None = None,
    *,
    sampler: SamplerFactory,
) -> Posterior:
    """Returns Ambient Diffusion's reconstruction: one step, h(y, A, t) at the noise level of y.

    It is a point estimate of E[x | y], not a sample: all draws are the same.

    Arguments:
        denoiser: A denoiser trained by Ambient Diffusion.
        corruption: The channel, a mask.
        x: Not used.
        sampler: Not used.
    """

    def draw(measurement: Measurement) -> Tensor:
        y, mask, std = measurement
        level = float(std.max())
        t = torch.tensor(time_of(denoiser, level), device=y.device)
        alpha, _ = denoiser.schedule(t)
        return MaskedDenoiser(denoiser, mask)(alpha * y, t).mean

    return draw
