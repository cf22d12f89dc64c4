"""The rivals' posteriors where theory gives a value."""

import math
from functools import partial

import pytest
import torch
from azula.denoise import GaussianDenoiser
from azula.linalg.covariance import DPLRCovariance
from azula.noise import VESchedule
from azula.sample import DDPMSampler, HeunSampler
from exact import Zero
from torch import Tensor

from diffem.corruption import (
    Blur,
    GaussianNoise,
    LinearGaussianChannel,
    Mask,
    Measurement,
    Projection,
    make_channel,
)
from diffem.denoiser import Denoiser
from diffem.posterior import DPS, MMPS, DiffPIR, Isotropic, PiGDM, PrincipalComponents, SplitGibbs
from diffem.posterior.dps import DPSSampler
from diffem.posterior.gibbs import time_of
from diffem.posterior.linear_problem import FlatDenoiser, LinearProblem
from diffem.posterior.pigdm import PseudoInverseDenoiser
from diffem.runtime.rng import generator, seeded

SCHEDULE = VESchedule(sigma_min=1e-3, sigma_max=50.0)
STD = 0.3


def dense(channel: LinearGaussianChannel, measurement: Measurement) -> Tensor:
    """Returns the operator of the first sample as a matrix, (M, D)."""
    unit = torch.eye(math.prod(channel.shape)).unflatten(1, channel.shape)
    operator = measurement.operator[:1].expand(len(unit), *measurement.operator.shape[1:])
    return channel.apply(unit, operator).flatten(1).mT


def repeated(channel: LinearGaussianChannel, n: int) -> Measurement:
    """Returns one measurement, n times."""
    one = channel.draw(torch.randn(1, *channel.shape, generator=generator(1)), generator(2))
    return Measurement(*(field.expand(n, *field.shape[1:]) for field in one))


def whitened(x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    return (x.flatten(1) - mean) @ torch.linalg.inv(torch.linalg.cholesky(cov)).mT


def exact(a: Tensor, y: Tensor, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the posterior mean and covariance of x ~ N(mean, cov) given y = a x + noise."""
    gain = cov @ a.mT @ torch.linalg.inv(a @ cov @ a.mT + STD**2 * torch.eye(len(a)))
    return mean + gain @ (y - a @ mean), cov - gain @ a @ cov


def assert_standard_normal(z: Tensor, *, bias: float) -> None:
    """Holds the mean and covariance of z, (n, D), to those of N(0, I) and a sampler's bias."""
    n, dim = z.shape
    # Monte Carlo: 4.5 standard errors.
    assert z.mean(dim=0).abs().max() < 4.5 / math.sqrt(n) + bias
    assert (torch.cov(z.mT) - torch.eye(dim)).abs().max() < 4.5 * math.sqrt(2 / n) + bias


CORRUPTIONS = {
    "mask": make_channel(Mask((1, 2, 3), rho=0.5), GaussianNoise(STD)),
    "blur": make_channel(Blur((1, 2, 3), sigma=0.6, kernel_size=3), GaussianNoise(STD)),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_mmps_is_exact_for_a_gaussian_prior(name: str) -> None:
    channel, n, dim = CORRUPTIONS[name], 4000, 6
    d = 0.2 + torch.rand(dim, generator=generator(3))
    v = torch.randn(dim, 2, generator=generator(4))
    mean = torch.randn(dim, generator=generator(5))
    prior = GaussianDenoiser(
        mean.view(1, 2, 3), DPLRCovariance(d.view(1, 2, 3), v.view(1, 2, 3, 2)), SCHEDULE
    )
    measurement = repeated(channel, n)
    posterior = MMPS(
        prior,  # type: ignore[arg-type]
        channel,
        sampler=partial(HeunSampler, steps=64),
        solver="cg",
        iterations=dim,
    )
    with seeded(6):
        x = posterior.draw(measurement)
    a, y = dense(channel, measurement), measurement.y[0].flatten()
    z = whitened(x, *exact(a, y, mean, torch.diag(d) + v @ v.mT))
    assert_standard_normal(z, bias=0.01)  # Heun's


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_split_gibbs_is_exact_for_a_standard_normal(name: str) -> None:
    channel, n, dim = CORRUPTIONS[name], 4000, 6
    measurement = repeated(channel, n)
    posterior = SplitGibbs(
        Denoiser(Zero(), SCHEDULE),
        channel,
        sampler=partial(DDPMSampler, steps=24 * 48),
        coupling=(3.0, 0.05),
        sweeps=24,
    )
    with seeded(7):
        x = posterior.draw(measurement)
    a, y = dense(channel, measurement), measurement.y[0].flatten()
    z = whitened(x, *exact(a, y, torch.zeros(dim), torch.eye(dim)))
    # The last coupling leaves 0.05² beside a variance of at least STD² / 2; and the annealing.
    assert_standard_normal(z, bias=0.1)


def test_time_of_a_noise_level() -> None:
    denoiser = Denoiser(Zero(), SCHEDULE)
    for rho in (0.01, 0.5, 10.0):
        t = time_of(denoiser, torch.tensor(rho))
        assert float(SCHEDULE(t)[1]) == pytest.approx(rho, rel=1e-4)


def test_dps_takes_the_gradient_of_each_sample_s_own_norm() -> None:
    channel = CORRUPTIONS["blur"]
    measurement = repeated(channel, 3)
    flat = FlatDenoiser(Denoiser(Zero(), SCHEDULE), channel.shape)
    problem = LinearProblem(channel, measurement)
    t, s = torch.tensor(0.6), torch.tensor(0.55)
    x_t = torch.randn(3, 6, generator=generator(8))
    steps = {}
    for zeta in (0.0, 1.0):
        with seeded(9):
            steps[zeta] = DPSSampler(flat, problem, zeta=zeta, steps=1).step(x_t, t, s)
    shrink = 1 / (1 + SCHEDULE(t)[1] ** 2)  # x̂ = x_t / (1 + σ_t²) for x ~ N(0, I)
    a = dense(channel, measurement)
    error = problem.y - shrink * x_t @ a.mT
    expected = shrink * (error / error.norm(dim=1, keepdim=True)) @ a  # -∇ ‖y - A x̂‖
    torch.testing.assert_close(steps[1.0] - steps[0.0], expected, rtol=1e-4, atol=1e-4)


def test_diffpir_solves_its_proximal_problem() -> None:
    channel, lmbda, dim = CORRUPTIONS["blur"], 2.0, 6
    measurement = repeated(channel, 2)
    taken = []

    class Once(DDPMSampler):
        def __call__(self, x: Tensor, **_: object) -> Tensor:
            taken.append((x, self.denoiser(x, torch.tensor(0.6)).mean))
            return x

    posterior = DiffPIR(
        Denoiser(Zero(), SCHEDULE),
        channel,
        sampler=partial(Once, steps=1),
        lmbda=lmbda,
        iterations=dim,
    )
    with seeded(10):
        posterior.draw(measurement)
    ((x_t, mean),) = taken
    var_t = SCHEDULE(torch.tensor(0.6))[1] ** 2
    x_hat = x_t / (1 + var_t)
    a = dense(channel, measurement)
    system = a.mT @ a / STD**2 + lmbda / var_t * torch.eye(dim)
    right = measurement.y.flatten(1) @ a / STD**2 + lmbda / var_t * x_hat
    expected = torch.linalg.solve(system, right.mT).mT
    torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-3)


CHANNELS = {
    **CORRUPTIONS,
    "projection": make_channel(Projection((6,), rows=2), GaussianNoise(STD)),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_pigdm_is_exact_for_a_standard_normal(name: str) -> None:
    """r_t² = σ_t² / (1 + σ_t²) is then V[x | x_t], so ΠGDM draws from the exact posterior."""
    channel, n, dim = CHANNELS[name], 4000, 6
    measurement = repeated(channel, n)
    posterior = PiGDM(
        Denoiser(Zero(), SCHEDULE),
        channel,
        sampler=partial(HeunSampler, steps=64),
        covariance=Isotropic(1.0),
    )
    with seeded(12):
        x = posterior.draw(measurement)
    a, y = dense(channel, measurement), measurement.y[0].flatten()
    z = whitened(x, *exact(a, y, torch.zeros(dim), torch.eye(dim)))
    assert_standard_normal(z, bias=0.01)  # Heun's


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_cov_x_gives_the_exact_posterior_mean_for_a_gaussian_prior(name: str) -> None:
    """With Σ_x the data's own covariance, E[x | x_t, y] is exact at every time."""
    channel, n, dim, rank = CORRUPTIONS[name], 5, 6, 3
    v = torch.randn(dim, rank, generator=generator(13))
    variance = 0.3
    cov = v @ v.mT + variance * torch.eye(dim)
    prior = GaussianDenoiser(
        torch.zeros(1, 2, 3),
        DPLRCovariance(torch.full((1, 2, 3), variance), v.view(1, 2, 3, rank)),
        SCHEDULE,
    )
    # Points whose covariance is cov, exactly: ± each column of a root of it.
    root = torch.linalg.cholesky(cov) * math.sqrt(dim)
    points = torch.cat([root.mT, -root.mT]).view(-1, 1, 2, 3)
    covariance = PrincipalComponents(rank).fitted(points)
    measurement = repeated(channel, n)
    guide = PseudoInverseDenoiser(prior, channel, measurement, covariance)
    a, y = dense(channel, measurement), measurement.y.flatten(1)
    for t in (0.3, 0.6, 0.9):
        x_t = 2 * torch.randn(n, 1, 2, 3, generator=generator(14))
        var_t = SCHEDULE(torch.tensor(t))[1] ** 2
        # x | x_t ~ N(m, V), then y.
        gain = cov @ torch.linalg.inv(cov + var_t * torch.eye(dim))
        m, left = x_t.flatten(1) @ gain.mT, cov - gain @ cov
        k = left @ a.mT @ torch.linalg.inv(a @ left @ a.mT + STD**2 * torch.eye(len(a)))
        expected = m + (y - m @ a.mT) @ k.mT
        mean = guide(x_t, torch.tensor(t)).mean.flatten(1)
        torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-3)


def test_cov_x_is_exact_in_mixed_precision() -> None:
    """As a run samples by default: only the network's products are rounded to bfloat16."""
    channel = make_channel(Mask((1, 2, 3), rho=0.5), GaussianNoise(STD))
    covariance = PrincipalComponents(3).fitted(torch.randn(20, 1, 2, 3, generator=generator(15)))
    measurement = channel.draw(torch.randn(5, 1, 2, 3, generator=generator(16)), generator(17))
    guide = PseudoInverseDenoiser(Denoiser(Zero(), SCHEDULE), channel, measurement, covariance)
    x_t, t = torch.randn(5, 1, 2, 3, generator=generator(18)), torch.tensor(0.5)
    exact = guide(x_t, t).mean
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(guide(x_t, t).mean, exact)


def test_isotropic_heuristics() -> None:
    precision = torch.tensor(4.0)
    assert float(Isotropic(1.0)(precision)[2]) == pytest.approx(1 / 5)  # identity
    assert float(Isotropic(math.inf)(precision)[2]) == pytest.approx(1 / 4)  # cov_t


def test_dps_reaches_the_observation() -> None:
    """x ~ N(0, I) under a mask: what is seen agrees with y, what is not keeps the prior."""
    n = 2000
    channel = make_channel(Mask((1, 2, 2), rho=0.5), GaussianNoise(0.05))
    y = torch.tensor([[[[0.7, 0.0], [-1.2, 0.0]]]]).expand(n, -1, -1, -1)
    m = (y != 0).float()
    measurement = Measurement(y, m, torch.full((n, 1), 0.05))
    denoiser = Denoiser(Zero(), VESchedule(0.02, 20.0))
    posterior = DPS(denoiser, channel, sampler=partial(DDPMSampler, steps=128), zeta=1.0)
    with seeded(11):
        x = posterior.draw(measurement)
    seen, unseen = x[m == 1] - y[m == 1], x[m == 0]
    assert seen.abs().mean() < 0.5  # without guidance: 1.2
    assert abs(unseen.mean()) < 4 / math.sqrt(len(unseen)) + 0.02
    assert abs(unseen.var() - 1) < 0.15
