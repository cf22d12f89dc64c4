"""The evidence of a measurement against the closed form of a Gaussian prior."""

import math
from functools import partial

import pytest
import torch
from azula.noise import VESchedule, VPSchedule
from test_sde import CHANNELS, PRIOR, SHAPE, Exact
from torch import Tensor

from diffem.corruption import JPEG, LinearGaussianChannel, Measurement
from diffem.corruption.distorted import DistortedChannel
from diffem.denoiser import Conditioning
from diffem.posterior import Conditional, SDESampler
from diffem.posterior.evidence import estimate_evidence
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded

SCHEDULES = {"ve": VESchedule(0.005, 20.0), "vp": VPSchedule(alpha_min=0.05, sigma_min=0.005)}


def exact(channel: LinearGaussianChannel, measurement: Measurement) -> Tensor:
    """Returns log N(y; 0, PRIOR² A Aᵀ + σ_y² I) of the measured entries, (B,)."""
    basis = torch.eye(math.prod(SHAPE)).reshape(-1, *SHAPE)
    found = []
    for i in range(len(measurement.y)):
        y, operator, noise = measurement.select(slice(i, i + 1))
        measured = channel.measured_mask(y, operator).flatten().bool()
        columns = [channel.apply(v[None], operator).flatten() for v in basis]
        A = torch.stack(columns, dim=1).double()[measured]
        cov = PRIOR**2 * A @ A.T + float(noise) ** 2 * torch.eye(len(A), dtype=torch.float64)
        law = torch.distributions.MultivariateNormal(torch.zeros(len(A)).double(), cov)
        found.append(law.log_prob(y.flatten()[measured].double()) if len(A) else torch.zeros(()))
    return torch.stack([value.double() for value in found])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", CHANNELS)
def test_the_evidence_is_that_of_the_closed_form(name: str, schedule: str) -> None:
    channel, gen = CHANNELS[name], generator(0)
    denoiser = Exact(SCHEDULES[schedule])
    y = channel.draw(PRIOR * torch.randn(32, *SHAPE, generator=gen), gen)
    posterior = Conditional(
        denoiser, channel, sampler=partial(SDESampler, steps=20), condition=Conditioning()
    )
    n = 32
    with seeded(1), torch.no_grad():
        found = estimate_evidence(posterior, denoiser, y, n=n).log_evidence
    error = found.std(dim=0) / n**0.5
    off = found.mean(dim=0) - exact(channel, y)
    # In standard errors, of 32 estimates: of 32 such numbers the largest is below 4.5 but for one
    # time in a thousand, and their mean, if it has no bias, below 4 / √32. The estimates leave
    # out what is noisier than the first level: 0.01.
    assert ((off.abs() - 0.01) / error).max() < 4.5
    assert abs(float((off / error).mean())) < 4 / 32**0.5


def test_the_error_of_32_draws_is_small() -> None:
    """Without the Gaussian case of which the integral is known it is 2.1 nats of one draw."""
    channel, gen = CHANNELS["noise"], generator(0)
    denoiser = Exact(SCHEDULES["ve"])
    y = channel.draw(PRIOR * torch.randn(32, *SHAPE, generator=gen), gen)
    posterior = Conditional(
        denoiser, channel, sampler=partial(SDESampler, steps=20), condition=Conditioning()
    )
    with seeded(1), torch.no_grad():
        found = estimate_evidence(posterior, denoiser, y, n=16).log_evidence
    assert float(found.std(dim=0).mean()) < 1.4


def test_what_the_prior_would_not_have_guessed_is_surprising() -> None:
    channel, gen = CHANNELS["noise"], generator(0)
    denoiser = Exact(SCHEDULES["ve"])
    x = PRIOR * torch.randn(64, *SHAPE, generator=gen)
    x[:, 0, 0, 0] = 5 * PRIOR
    posterior = Conditional(
        denoiser, channel, sampler=partial(SDESampler, steps=20), condition=Conditioning()
    )
    with seeded(1), torch.no_grad():
        found = estimate_evidence(posterior, denoiser, channel.draw(x, gen), n=2).surprise
    planted, others = found[:, 0, 0, 0].mean(), found.flatten(1)[:, 1:].mean()
    assert planted > 5 * others


def test_a_channel_that_is_not_linear_is_refused() -> None:
    denoiser = Exact(SCHEDULES["ve"])
    channel = DistortedChannel(CHANNELS["noise"], [JPEG(quality=50)])
    posterior = Conditional(
        denoiser, channel, sampler=partial(SDESampler, steps=2), condition=Conditioning()
    )
    y = channel.draw(torch.zeros(1, 1, 8, 8), generator(0))
    with pytest.raises(UserError, match="the evidence of a measurement needs a linear channel"):
        estimate_evidence(posterior, denoiser, y, n=1)
