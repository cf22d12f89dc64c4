"""Sampling a reflected diffusion, where the denoiser is known."""

from functools import partial

import pytest
import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from azula.noise import Schedule, VESchedule, VPSchedule
from exact import Zero
from torch import Tensor

from diffem.corruption import GaussianNoise, Mask, make_channel
from diffem.denoiser import Conditioning, Denoiser
from diffem.denoiser.reflected import reflected_mean
from diffem.posterior import Reflected, ReflectedSampler, Start
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded

SCHEDULE = VESchedule(0.005, 5.0)
UNFUSED = Conditioning(fuse=False)


class Points(AzulaDenoiser):
    """E[m | x_t] of a law of some points: each point's m, weighted by p(x_t | point)."""

    def __init__(self, points: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.schedule, self.points, self.weights = SCHEDULE, points, weights

    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:  # type: ignore[override]
        sigma = self.schedule(t)[1]
        shifts = 4.0 * torch.arange(-8, 9)
        of_points, logs = [], []
        for point in self.points:
            x = point.expand_as(x_t)
            images = torch.cat([x[..., None] + shifts, 2 - x[..., None] + shifts], dim=-1)
            logs.append((-((x_t[..., None] - images) ** 2) / (2 * sigma**2)).logsumexp(dim=-1))
            of_points.append(reflected_mean(x, x_t, sigma.expand_as(x_t)))
        p = torch.softmax(torch.stack(logs, dim=-1) + self.weights.log(), dim=-1)
        return DiracPosterior((p * torch.stack(of_points, dim=-1)).sum(dim=-1))


class Uniform(AzulaDenoiser):
    """E[m | x_t] = x_t, of a uniform law."""

    schedule = SCHEDULE

    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:  # type: ignore[override]
        return DiracPosterior(x_t)


def test_a_uniform_law_stays_uniform() -> None:
    n = 40_000
    sampler = ReflectedSampler(Uniform(), steps=20, silent=True)
    with seeded(0):
        start = sampler.init((n, 1))
        x = sampler(start)
    for each in (start, x):
        assert each.abs().max() <= 1
        cdf = (each.flatten().sort().values + 1) / 2
        gap = (cdf - (torch.arange(n) + 0.5) / n).abs().max()
        assert gap < 1.95 / n**0.5  # Kolmogorov's: exceeded once in a thousand times


def test_samples_have_the_law_that_the_denoiser_is_of() -> None:
    """Points on the border, near it and within; DDPM's steps leave a bias of a few percent."""
    points, weights = torch.tensor([-1.0, -0.4, 0.9]), torch.tensor([0.5, 0.2, 0.3])
    n = 4000
    sampler = ReflectedSampler(Points(points, weights), steps=200, silent=True)
    with seeded(0):
        x = sampler(sampler.init((n, 1)))
    assert x.abs().max() <= 1
    distance, nearest = (x - points).abs().min(dim=1)
    assert distance.max() < 0.05  # σ_min = 0.005 is left
    found = torch.bincount(nearest, minlength=3) / n
    # 4.5 standard errors, and the steps' bias.
    assert ((found - weights).abs() < 4.5 * (weights * (1 - weights) / n).sqrt() + 0.02).all()


def posterior(schedule: Schedule, *, fuse: bool | None = False, dim: int = 3) -> Reflected:
    shape = (1, 4, 4)[-dim:]
    channel = make_channel(Mask(shape, rho=0.5), GaussianNoise(0.1))
    return Reflected(
        Denoiser(Zero(), schedule), channel,
        sampler=partial(ReflectedSampler, steps=4), condition=Conditioning(fuse=fuse),
    )  # fmt: skip


def test_no_entry_is_outside_of_draws_and_redraws() -> None:
    """An untrained network: E[m | x_t] is shrunk towards 0, and the noise would take x out."""
    given = posterior(SCHEDULE)
    x = torch.rand(64, 1, 4, 4, generator=generator(0)) * 2 - 1
    measurement = given.channel.draw(x, generator(1))
    with seeded(2):
        drawn = given.draw(measurement)
        redrawn = given.redraw(measurement, Start(3 * drawn, 0.9))
    for each in (drawn, redrawn):
        assert each.shape == x.shape and each.abs().max() <= 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fuse": None}, "method.condition.fuse must be false"),
        ({"fuse": True}, "method.condition.fuse must be false"),
        ({"dim": 1}, "needs images, whose values lie in"),
        ({"schedule": VPSchedule()}, "needs schedule._target_=azula.noise.VESchedule"),
        ({"schedule": VESchedule(0.01, 1.5)}, "sigma_max must be at least 2 .* got 1.5"),
    ],
)
def test_what_it_does_not_fit_is_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        posterior(**{"schedule": SCHEDULE, **settings})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
