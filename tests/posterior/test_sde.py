"""The sampler of the reverse SDE against the closed form of a Gaussian prior."""

import math
from functools import partial

import pytest
import torch
from azula.denoise import DiracPosterior
from azula.noise import Schedule, VESchedule, VPSchedule
from torch import Tensor, nn

from diffem.corruption import Blur, Denoising, GaussianNoise, LinearChannel, Mask, make_channel
from diffem.denoiser import Condition, Conditioning, Denoiser
from diffem.denoiser.denoiser import expand
from diffem.posterior import Conditional, SDESampler, Start
from diffem.runtime.rng import generator, seeded

SHAPE, STD, PRIOR = (1, 2, 2), 0.3, 0.5


class Exact(Denoiser):
    """E[x | x_t, y] of x ~ N(0, PRIOR² I), in place of a network."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(nn.Identity(), schedule)

    def forward(  # type: ignore[override]
        self, x_t: Tensor, t: Tensor, condition: Condition | None = None
    ) -> DiracPosterior:
        alpha, sigma = self.schedule(t)
        precision = expand((alpha / sigma) ** 2, x_t) + PRIOR**-2
        information = expand(alpha / sigma**2, x_t) * x_t
        if condition is None:
            return DiracPosterior(information / precision)
        spectrum = condition.spectrum
        z = spectrum.analyse(information) + condition.information
        return DiracPosterior(spectrum.synthesise(z / (precision + condition.precision)))


CHANNELS = {
    "mask": make_channel(Mask(SHAPE, rho=0.5), GaussianNoise(STD)),
    "blur": make_channel(Blur(SHAPE, sigma=1.0, kernel_size=3), GaussianNoise(STD)),
    "noise": make_channel(Denoising(SHAPE), GaussianNoise(STD)),
}
SCHEDULES = {"ve": VESchedule(0.02, 10.0), "vp": VPSchedule(alpha_min=0.05, sigma_min=0.02)}


def moments(
    channel: LinearChannel, schedule: Schedule, steps: int, n: int = 20_000
) -> tuple[Tensor, Tensor]:
    """Returns mean and variance of whitened samples' coefficients; 0 and 1 if they are exact."""
    gen = generator(0)
    one = channel.draw(PRIOR * torch.randn(1, *SHAPE, generator=gen), gen)
    condition = Conditioning()(channel, one)
    sampler = SDESampler(Exact(schedule), steps=steps, silent=True)
    with seeded(1):
        x = sampler(sampler.init((n, *SHAPE), var=PRIOR**2), condition=condition)
    precision = condition.precision + PRIOR**-2
    z = (condition.spectrum.analyse(x) - condition.information / precision) * precision.sqrt()
    return z.mean(dim=0), z.var(dim=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("channel", CHANNELS)
def test_samples_have_the_law_of_the_posterior(channel: str, schedule: str) -> None:
    mean, var = moments(CHANNELS[channel], SCHEDULES[schedule], 64)
    # 4.5 standard errors, and what 64 steps of a second-order method leave.
    assert mean.abs().max() < 4.5 / math.sqrt(20_000) + 0.01
    assert (var - 1).abs().max() < 4.5 * math.sqrt(2 / 20_000) + 0.01


@pytest.mark.parametrize("t", [0.3, 0.7])
@pytest.mark.parametrize("channel", CHANNELS)
def test_a_redraw_leaves_the_posterior_as_it_is(channel: str, t: float) -> None:
    """x', and x drawn from x_t = x' + σ_t z on: the correlation is 1 / (1 + p σ_t²), p the
    posterior's precision."""
    n, gen, given = 20_000, generator(0), CHANNELS[channel]
    one = given.draw(PRIOR * torch.randn(1, *SHAPE, generator=gen), gen)
    condition = Conditioning()(given, one)
    precision = condition.precision + PRIOR**-2
    mean = condition.information / precision
    earlier = torch.randn(n, *SHAPE, generator=gen)  # whitened, as z below
    schedule = SCHEDULES["ve"]
    sampler = partial(SDESampler, steps=128)
    posterior = Conditional(Exact(schedule), given, sampler=sampler, condition=Conditioning())
    x = condition.spectrum.synthesise(mean + earlier * torch.rsqrt(precision))
    with seeded(1):
        x = posterior.redraw(one.select(torch.zeros(n, dtype=torch.int64)), Start(x, t))
    z = (condition.spectrum.analyse(x) - mean) * precision.sqrt()
    expected = 1 / (1 + precision * schedule(torch.tensor(t))[1] ** 2)
    # 4.5 standard errors, and what the steps of a second-order method leave.
    assert z.mean(dim=0).abs().max() < 4.5 / math.sqrt(n) + 0.01
    assert (z.var(dim=0) - 1).abs().max() < 4.5 * math.sqrt(2 / n) + 0.01
    correlation = (z * earlier).mean(dim=0)
    assert (correlation - expected).abs().max() < 4.5 * math.sqrt(2 / n) + 0.01


@pytest.mark.parametrize(("steps", "off"), [(8, 0.05), (10, 0.03), (14, 0.01), (20, 0.01)])
@pytest.mark.parametrize("channel", CHANNELS)
def test_few_steps_have_the_right_variance(channel: str, steps: int, off: float) -> None:
    """Where SDE-DPM-Solver++(2M) is 5 to 10 % off; besides, 4.5 standard errors."""
    n = 400_000
    mean, var = moments(CHANNELS[channel], VESchedule(0.005, 20.0), steps, n)
    assert mean.abs().max() < 4.5 / math.sqrt(n) + 0.01
    assert (var - 1).abs().max() < 4.5 * math.sqrt(2 / n) + off


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("channel", CHANNELS)
def test_long_steps_do_not_diverge(channel: str, steps: int) -> None:
    """h is 1.7 to 8.3; what so few evaluations leave of the variance is less than all of it."""
    _, var = moments(CHANNELS[channel], VESchedule(0.005, 20.0), steps)
    assert var.max() < 1 + 4.5 * math.sqrt(2 / 20_000)


def test_what_the_prior_leaves_open_has_the_variance_of_the_fusion() -> None:
    """σ_y far below σ_min: y decides, and the noise of the last time must not be added to it."""
    sharp = make_channel(Denoising(SHAPE), GaussianNoise(0.002))
    _, var = moments(sharp, VESchedule(0.02, 10.0), 32)
    assert (var - 1).abs().max() < 4.5 * math.sqrt(2 / 20_000) + 0.02


def test_the_last_evaluation_is_one_of_the_steps() -> None:
    class Counting(Exact):
        calls = 0

        def forward(  # type: ignore[override]
            self, x_t: Tensor, t: Tensor, condition: Condition | None = None
        ) -> DiracPosterior:
            self.calls += 1
            return super().forward(x_t, t, condition)

    denoiser = Counting(VESchedule(0.02, 10.0))
    sampler = SDESampler(denoiser, steps=5, silent=True)
    sampler(sampler.init((1, *SHAPE)))
    assert denoiser.calls == 5
