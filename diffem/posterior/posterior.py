"""Posterior sampling: x ~ p_θ(x | y), the E-step's draw, and x ~ p_θ(x), the prior's."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from azula.denoise import Denoiser as AzulaDenoiser
from torch import Tensor

from diffem.corruption import Corruption, Measurement
from diffem.denoiser.condition import Conditioning
from diffem.denoiser.denoiser import Denoiser
from diffem.runtime.rng import Key, seeded

SamplerFactory = partial[Any]
"""One of azula's samplers, its steps among the keywords; called with the denoiser."""
Device = torch.device | str
Posterior = Callable[[Measurement], Tensor]
"""Draws x ~ p(x | y), (B, *shape), from the global generators, one for each measurement."""
PosteriorFactory = Callable[[Denoiser, Corruption, Tensor | None], Posterior]
"""Makes the posterior that a method samples in its E-step: from the denoiser, the channel and some
reconstructions of the round before, (n, *shape), to take moments of; None if there are none."""


def conditional(
    denoiser: Denoiser,
    corruption: Corruption,
    x: Tensor | None = None,
    *,
    sampler: SamplerFactory,
    condition: Conditioning,
) -> Posterior:
    """Returns the posterior that a conditional denoiser defines: DiffEM's.

    Arguments:
        denoiser: A denoiser that was trained on measurements of the channel.
        corruption: The channel.
        x: Not used.
        sampler: The sampler.
        condition: How the denoiser was told of the measurements.
    """

    def draw(measurement: Measurement) -> Tensor:
        process = sampler(denoiser=denoiser, silent=True)
        x_1 = process.init(measurement.y.shape[:1] + corruption.shape, device=measurement.y.device)
        return process(x_1, condition=condition(corruption, measurement))

    return draw


def reconstruct(
    draw: Posterior, measurement: Measurement, *, size: int, key: Sequence[Key], device: Device
) -> Tensor:
    """Draws one reconstruction of each measurement of a chunk, on the CPU, (B, *shape).

    The batch is padded to a constant size by repetition, because a batch's size changes a sample's
    last bits; the noise depends on the key alone.

    Arguments:
        draw: The posterior.
        measurement: The chunk's measurements, 1 <= B <= size.
        size: The constant batch size.
        key: The key of the noise.
        device: Where to sample.
    """
    n = len(measurement.y)
    padded = measurement.select(torch.arange(size) % n).to(device)
    with seeded(*key, device=device):
        return draw(padded)[:n].float().cpu()


def sample_prior(
    denoiser: AzulaDenoiser, shape: Sequence[int], sampler: SamplerFactory, *, device: Device
) -> Tensor:
    """Draws x ~ p_θ(x), on the CPU, from the global generators.

    Arguments:
        denoiser: A denoiser that takes no condition.
        shape: The shape of the samples, (n, *S).
        sampler: The sampler.
        device: Where to sample.
    """
    process = sampler(denoiser=denoiser, silent=True)
    return process(process.init(tuple(shape), device=torch.device(device))).float().cpu()
