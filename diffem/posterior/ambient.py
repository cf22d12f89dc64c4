"""Ambient Diffusion (Daras et al. 2023, arXiv 2305.19256): no EM, a second mask on the first.

The denoiser h(Ã x_t, Ã, t) sees the pixels of a further mask Ã = B A and is trained to predict
what the mask A left, so that it learns E[x | Ã x_t, Ã] of every pixel from masked images alone.
"""

from collections.abc import Sequence

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from torch import Tensor

from diffem.corruption import Channel, LinearGaussianChannel, Measurement
from diffem.corruption.operator import expand
from diffem.denoiser import Denoiser
from diffem.denoiser.condition import embedding_only
from diffem.posterior.gibbs import time_of
from diffem.posterior.posterior import DenoiserPosterior, Prior, SamplerFactory
from diffem.runtime.errors import UserError


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
        return self.denoiser(self.mask * x_t, t, embedding_only(self.mask))


class Restoration(DenoiserPosterior):
    """Ambient Diffusion's reconstruction: one step, h(y, A, t) at the noise level of y.

    It is a point estimate of E[x | y], not a sample: all draws are the same.

    Arguments:
        denoiser: A denoiser trained by Ambient Diffusion.
        channel: The channel, a mask.

    Raises:
        UserError: If a parameter of the channel is to be learned, which takes samples.
    """

    requires = LinearGaussianChannel
    samplers = ()

    def __init__(self, denoiser: Denoiser, channel: Channel) -> None:
        super().__init__(denoiser, channel)
        if channel.learn:
            raise UserError(
                f"corruption.learn={list(channel.learn)} needs samples of the posterior, and "
                "method=ambient has a point estimate; choose another method, or "
                "corruption.learn=[]"
            )

    def draw(self, measurement: Measurement) -> Tensor:
        """Returns the estimate of E[x | y] for each measurement, (B, *shape)."""
        y, mask, std = measurement
        t = time_of(self.denoiser, std[:, 0]).float()
        alpha, _ = self.denoiser.schedule(t)
        return MaskedDenoiser(self.denoiser, mask)(expand(alpha, y) * y, t).mean


class AmbientPrior(Prior):
    """p(x), each sample drawn under one further mask that stays fixed over its steps.

    Arguments:
        denoiser: A denoiser trained by Ambient Diffusion.
        shape: The shape of one sample, (C, *S).
        sampler: The sampler.
        removed: The probability that a pixel is masked, 1 - (1 - ρ) (1 - δ).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        *,
        sampler: SamplerFactory,
        removed: float,
    ) -> None:
        super().__init__(denoiser, shape, sampler=sampler)
        self.removed = removed

    def sample(self, n: int) -> Tensor:
        """Draws n samples, (n, *shape), from the global generators, on the denoiser's device."""
        device = next(self.denoiser.parameters()).device
        mask = (torch.rand((n, 1, *self.shape[1:]), device=device) >= self.removed).float()
        process = self.sampler(denoiser=MaskedDenoiser(self.denoiser, mask), silent=True)
        return process(process.init((n, *self.shape), device=device))
