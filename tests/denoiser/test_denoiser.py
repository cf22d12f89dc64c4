"""Law 2, first half: where the exact denoiser is known, the samples have the exact posterior."""

import math
from functools import partial

import pytest
import torch
from azula.denoise import DiracPosterior, KarrasDenoiser
from azula.noise import VESchedule, VPSchedule
from azula.sample import DDIMSampler, DDPMSampler, HeunSampler, PCSampler, xEABSampler
from exact import Zero
from torch import Tensor, nn

from diffem.corruption import (
    Blur,
    Denoising,
    GaussianNoise,
    Mask,
    Measurement,
    Projection,
    make_channel,
)
from diffem.denoiser import BetaMixture, Condition, Conditioning, Denoiser
from diffem.posterior import Conditional, Prior, reconstruct
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded

SCHEDULE = VESchedule(sigma_min=1e-3, sigma_max=50.0)


class Linear(nn.Module):
    """Any backbone that uses its condition."""

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        shift = 0 if cond is None else cond.mean()
        return torch.tanh(x) * c.mean() + shift


@pytest.mark.parametrize("schedule", [SCHEDULE, VPSchedule()], ids=["VE", "VP"])
def test_without_a_condition_it_is_edm(schedule: VESchedule) -> None:
    x_t, t = torch.randn(4, 2, 3, 3), torch.tensor([0.1, 0.4, 0.6, 0.9])
    ours = Denoiser(Linear(), schedule)(x_t, t).mean
    reference = KarrasDenoiser(Linear(), schedule)(x_t, t, cond=None).mean
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


def test_loss_is_edm_s() -> None:
    x, t = torch.randn(64, 5, generator=generator(0)), torch.rand(64, generator=generator(1))
    with seeded(1):
        ours = Denoiser(Linear(), SCHEDULE).loss(x, t)
    with seeded(1):
        reference = KarrasDenoiser(Linear(), SCHEDULE).loss(x, t, cond=None)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=0)  # float32 sums


@pytest.mark.parametrize("t", [0.2, 0.6, 0.9])
@pytest.mark.parametrize(
    "operator", [Denoising((1, 4, 4)), Blur((1, 4, 4), sigma=1.0, kernel_size=3)]
)
def test_all_noise_levels_of_a_fused_loss_count_alike(
    operator: Denoising | Blur, t: float
) -> None:
    """Of x ~ N(0, I) the exact error has the variance 1 / w: the loss is 1."""
    channel, n = make_channel(operator, GaussianNoise(0.5)), 4000  # s²/σ_y² is at most 4
    x = torch.randn(n, 1, 4, 4, generator=generator(0))
    condition = Conditioning()(channel, channel.draw(x, generator(1)))
    with seeded(2):
        loss = Denoiser(Zero(), SCHEDULE).loss(x, torch.full((n,), t), condition)
    # 4.5 standard errors, and float32: z̄ is a sum of terms a hundred times the error.
    assert abs(float(loss.detach()) - 1) < 4.5 * (2 / (16 * n)) ** 0.5 + 1e-4


def test_what_is_measured_well_counts_no_more_than_at_a_precision_of_25() -> None:
    """Half of the pixels have s²/σ_y² = 100: at a high level their error counts 26 / 101."""
    channel, n, t = make_channel(Mask((1, 4, 4), rho=0.5), GaussianNoise(0.1)), 4000, 0.95
    x = torch.randn(n, 1, 4, 4, generator=generator(0))
    measurement = channel.draw(x, generator(1))
    p = float(SCHEDULE(torch.tensor(t))[1]) ** -2
    with seeded(2):
        loss = Denoiser(Zero(), SCHEDULE).loss(
            x, torch.full((n,), t), Conditioning()(channel, measurement)
        )
    measured = float(measurement.operator.mean())
    expected = measured * (p + 26) / (p + 101) + 1 - measured
    assert abs(float(loss.detach()) - expected) < 4.5 * (2 / (16 * n)) ** 0.5


@pytest.mark.parametrize("std", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_weak_noise_tells_nothing_of_what_was_not_measured(rows: int, std: float) -> None:
    """Of x ~ N(0, I) the exact denoiser's error is 0 in the measured directions and 1 in the rest.

    Rounding errors of Vᵀ Aᵀ y, divided by σ_y², made it 1e13 at 1e-7.
    """
    channel, n = make_channel(Projection((5,), rows=rows), GaussianNoise(std)), 2000
    x = torch.randn(n, 5, generator=generator(0))
    condition = Conditioning()(channel, channel.draw(x, generator(1)))
    with seeded(2):
        loss = Denoiser(Zero(), SCHEDULE).loss(x, torch.full((n,), 0.95), condition).detach()
    # Two rows may be nearly parallel, and the measured direction then counts up to 26.
    assert abs(float(loss) - (1 - rows / 5)) < 4.5 * (2 / (5 * n)) ** 0.5 + 0.02


def test_fused_denoiser_is_exact_for_a_standard_normal() -> None:
    """E[x | x_t, y] of x ~ N(0, 1), x_t = x + σ_t z, y = x + σ_y ε where m = 1."""
    channel = make_channel(Mask((1, 4, 4), rho=0.5), GaussianNoise((0.1, 0.5)))
    x = torch.randn(8, 1, 4, 4, generator=generator(0))
    measurement = channel.draw(x, generator(1))
    t = torch.linspace(0.2, 0.9, 8)
    sigma_t = SCHEDULE(t)[1].view(-1, 1, 1, 1)
    x_t = x + sigma_t * torch.randn(x.shape, generator=generator(2))
    m, var_y = measurement.operator, measurement.noise.view(-1, 1, 1, 1) ** 2
    expected = (x_t / sigma_t**2 + m * measurement.y / var_y) / (1 + sigma_t**-2 + m / var_y)
    mean = Denoiser(Zero(), SCHEDULE)(x_t, t, Conditioning()(channel, measurement)).mean
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)


def test_fused_denoiser_is_exact_for_any_linear_channel() -> None:
    """E[x | x_t, y] of x ~ N(0, I) under a blur, by solving the normal equations."""
    channel = make_channel(
        Blur((1, 3, 4), sigma=(0.5, 1.5), kernel_size=3), GaussianNoise((0.1, 0.5))
    )
    n, dim = 8, 12
    x = torch.randn(n, 1, 3, 4, generator=generator(0))
    measurement = channel.draw(x, generator(1))
    t = torch.linspace(0.2, 0.9, n)
    var_t = (SCHEDULE(t)[1] ** 2).view(-1, 1, 1)
    x_t = x + var_t.sqrt().view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator(2))
    unit = torch.eye(dim).view(dim, 1, 1, 3, 4)
    a = torch.stack(
        [channel.apply(e.expand(n, -1, -1, -1), measurement.operator).flatten(1) for e in unit],
        dim=2,
    )
    var_y = (measurement.noise**2).view(-1, 1, 1)
    system = torch.eye(dim) * (1 + 1 / var_t) + a.mT @ a / var_y
    right = (
        x_t.flatten(1)[:, :, None] / var_t + a.mT @ measurement.y.flatten(1)[:, :, None] / var_y
    )
    expected = torch.linalg.solve(system.double(), right.double()).view_as(x).float()
    mean = Denoiser(Zero(), SCHEDULE)(x_t, t, Conditioning()(channel, measurement)).mean
    torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-4)


SAMPLERS = {
    # The largest bias of the discretisation, measured with 400,000 samples and rounded up.
    "ddpm": (partial(DDPMSampler, steps=512), 0.03),
    "ddim": (partial(DDIMSampler, steps=256, eta=0.0), 0.03),
    "heun": (partial(HeunSampler, steps=64), 0.01),
    "multistep": (partial(xEABSampler, steps=128), 0.01),
    "pc": (partial(PCSampler, steps=512, delta=0.01), 0.02),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_exact_posterior_of_a_masked_normal(name: str) -> None:
    """x ~ N(0, I), y = m (x + σ_y ε): mean m y / (1 + σ_y²), variance 1 - m / (1 + σ_y²)."""
    sampler, bias = SAMPLERS[name]
    n, std = 4000, 0.5
    channel = make_channel(Mask((1, 2, 2), rho=0.5), GaussianNoise(std))
    y = torch.tensor([[[[0.7, 0.0], [-1.2, 0.0]]]])
    m = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    measurement = Measurement(
        y.expand(n, -1, -1, -1), m.expand(n, -1, -1, -1), torch.full((n, 1), std)
    )
    posterior = Conditional(
        Denoiser(Zero(), SCHEDULE), channel, sampler=sampler, condition=Conditioning()
    )
    with seeded(3):
        x = posterior.draw(measurement).flatten(1)
    mean = (m * y / (1 + std**2)).flatten()
    var = (1 - m / (1 + std**2)).flatten()
    # Monte Carlo: 4.5 standard errors of a mean and of a variance, plus the sampler's bias.
    assert ((x.mean(dim=0) - mean).abs() < 4.5 * (var / n).sqrt() + bias).all()
    assert ((x.var(dim=0) / var - 1).abs() < 4.5 * math.sqrt(2 / n) + bias).all()
    off_diagonal = torch.corrcoef(x.mT) - torch.eye(4)
    assert off_diagonal.abs().max() < 4.5 / math.sqrt(n)


class ExactProjection(nn.Module):
    """E[x | x_t, y] of x ~ N(μ, Σ) under a projection, by solving the normal equations."""

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        super().__init__()
        self.schedule = SCHEDULE
        self.mean, self.precision = mean, torch.linalg.inv(cov)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> DiracPosterior:
        dim = len(self.mean)
        At_y, entries, std = condition.embedding.split([dim, dim * (dim + 1) // 2, 1], dim=1)
        i, j = torch.triu_indices(dim, dim)
        At_A = torch.empty(len(x_t), dim, dim)
        At_A[:, i, j] = At_A[:, j, i] = entries
        sigma_t = SCHEDULE(t)[1]
        system = self.precision + torch.eye(dim) / sigma_t**2 + At_A / std[:, :, None] ** 2
        right = self.precision @ self.mean + x_t / sigma_t**2 + At_y / std**2
        return DiracPosterior(torch.linalg.solve(system, right))


def test_samples_have_the_exact_posterior_under_a_projection() -> None:
    n, dim, std = 4000, 3, 0.3
    root = torch.randn(dim, dim, generator=generator(4))
    mean, cov = torch.randn(dim, generator=generator(5)), root @ root.mT + 0.1 * torch.eye(dim)
    channel = make_channel(Projection((dim,), rows=2), GaussianNoise(std))
    one = channel.draw(torch.randn(1, dim, generator=generator(6)), generator(7))
    measurement = Measurement(*(field.expand(n, *field.shape[1:]) for field in one))
    exact = ExactProjection(mean, cov)
    posterior = Conditional(
        exact,  # type: ignore[arg-type]
        channel,
        sampler=partial(HeunSampler, steps=64),
        condition=Conditioning(),
    )
    with seeded(8):
        x = posterior.draw(measurement)
    a = one.operator[0]
    gain = cov @ a.mT @ torch.linalg.inv(a @ cov @ a.mT + std**2 * torch.eye(2))
    expected_mean = mean + gain @ (one.y[0] - a @ mean)
    expected_cov = cov - gain @ a @ cov
    # Monte Carlo: 4.5 standard errors in the posterior's own units, plus Heun's bias of 0.01.
    whiten = torch.linalg.inv(torch.linalg.cholesky(expected_cov))
    z = (x - expected_mean) @ whiten.mT
    assert z.mean(dim=0).abs().max() < 4.5 / math.sqrt(n) + 0.01
    assert (torch.cov(z.mT) - torch.eye(dim)).abs().max() < 4.5 * math.sqrt(2 / n) + 0.01


def test_prior_samples_of_a_standard_normal() -> None:
    n = 4000
    with seeded(9):
        sampler = partial(HeunSampler, steps=64)
        x = Prior(Denoiser(Zero(), SCHEDULE), (2,), sampler=sampler).sample(n)
    assert x.mean(dim=0).abs().max() < 4.5 / math.sqrt(n) + 0.01
    assert (x.var(dim=0) - 1).abs().max() < 4.5 * math.sqrt(2 / n) + 0.01


def test_a_sample_depends_on_the_key_and_not_on_its_neighbours() -> None:
    channel = make_channel(Denoising((1, 4, 4)), GaussianNoise(0.5))
    measurement = channel.draw(torch.randn(6, 1, 4, 4), generator(10))
    posterior = Conditional(
        Denoiser(Zero(), SCHEDULE),
        channel,
        sampler=partial(DDPMSampler, steps=8),
        condition=Conditioning(),
    )
    options = {"size": 8, "device": "cpu"}
    whole = reconstruct(posterior, measurement, key=("k",), **options)  # type: ignore[arg-type]
    torch.manual_seed(123)
    short = reconstruct(posterior, measurement.select(slice(2)), key=("k",), **options)  # type: ignore[arg-type]
    other = reconstruct(posterior, measurement, key=("l",), **options)  # type: ignore[arg-type]
    assert whole.shape == (6, 1, 4, 4)
    assert torch.equal(whole[:2], short)
    assert not torch.equal(whole, other)


def test_beta_mixture_has_its_moments() -> None:
    n = 20000
    with seeded(11):
        t = BetaMixture([(2, 5), (5, 2)]).sample(n)
    # Beta(a, b): mean a / (a + b), variance ab / ((a + b)² (a + b + 1)); the mixture adds the
    # spread of the means, (3 / 14)².
    var = 10 / (49 * 8) + (3 / 14) ** 2
    assert abs(t.mean() - 0.5) < 4 * math.sqrt(var / n)
    assert abs(t.var() / var - 1) < 4 * math.sqrt(2 / n)


@pytest.mark.parametrize("components", [[], [[1]], [[0, 1]]])
def test_bad_beta_mixture(components: list[list[float]]) -> None:
    with pytest.raises(UserError, match=r"must be (pairs|a positive)"):
        BetaMixture(components)
