"""The sampler of one evaluation: what it starts from, against the closed form of the fusion."""

import math

import pytest
import torch
from azula.noise import Schedule, VESchedule, VPSchedule
from exact import Zero
from test_sde import CHANNELS, PRIOR, SHAPE

from diffem.denoiser import Conditioning, Denoiser
from diffem.posterior import OneStepSampler
from diffem.posterior.one_step import start_time
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded

SCHEDULES = {"ve": VESchedule(0.02, 10.0), "vp": VPSchedule(alpha_min=0.05, sigma_min=0.02)}
N = 20_000


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("channel", CHANNELS)
def test_what_it_starts_from_is_noisy_in_every_coefficient_at_its_own_level(
    channel: str, schedule: str
) -> None:
    """z̄ ~ N(σ̄² Vᵀ Aᵀ y / σ_y², σ̄²), 1/σ̄² = 1/σ² + s²/σ_y²: measured coefficients are noisy too."""
    given, sigma, gen = CHANNELS[channel], 0.7, generator(0)
    one = given.draw(PRIOR * torch.randn(1, *SHAPE, generator=gen), gen)
    condition = Conditioning()(given, one)
    denoiser = Denoiser(Zero(), SCHEDULES[schedule])  # d = V z̄ / (1 + σ̄²)
    sampler = OneStepSampler(denoiser, sigma=sigma)
    with seeded(1), torch.no_grad():
        x = sampler(torch.empty(N, *SHAPE), condition=condition)
    precision = condition.precision + sigma**-2
    z = condition.spectrum.analyse(x) * (1 + 1 / precision)
    white = (z - condition.information / precision) * precision.sqrt()
    assert white.mean(dim=0).abs().max() < 4.5 / math.sqrt(N)
    assert (white.var(dim=0) - 1).abs().max() < 4.5 * math.sqrt(2 / N)


@pytest.mark.parametrize("schedule", SCHEDULES.values())
def test_it_starts_at_the_time_of_its_level(schedule: Schedule) -> None:
    alpha, sigma = schedule(start_time(schedule, 0.7))
    assert float(sigma / alpha) == pytest.approx(0.7, rel=1e-5)
    with pytest.raises(UserError, match=r"student\.sigma must be a level of the noise schedule"):
        start_time(schedule, 1e-3)
