"""Law 2, second half: exact posterior samples and exact EM iterates of a Gaussian."""

import math
from itertools import pairwise

import pytest
import torch
from azula.linalg.covariance import DPLRCovariance
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
from diffem.posterior.gaussian import GaussianPosterior, fit_gaussian, observed_variance
from diffem.runtime.rng import generator, seeded

STD = 0.3


def dense(channel: LinearGaussianChannel, measurement: Measurement) -> Tensor:
    """Returns the operators as matrices A, (B, M, D), float64."""
    n, dim = len(measurement.y), math.prod(channel.shape)
    columns = [
        channel.apply(
            torch.eye(dim, dtype=torch.float64)[d]
            .view(1, *channel.shape)
            .expand(n, *channel.shape),
            measurement.operator.double(),
        ).flatten(1)
        for d in range(dim)
    ]
    return torch.stack(columns, dim=2)


def exact_posterior(mean: Tensor, cov: Tensor, a: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the posterior means, (B, D), and covariances, (B, D, D), in closed form."""
    noise = STD**2 * torch.eye(a.shape[1], dtype=a.dtype)
    gain = cov @ a.mT @ torch.linalg.inv(a @ cov @ a.mT + noise)
    residual = y.flatten(1) - a @ mean
    return mean + torch.einsum("bdm,bm->bd", gain, residual), cov - gain @ a @ cov


CORRUPTIONS = {
    "mask": make_channel(Mask((1, 2, 3), rho=0.5), GaussianNoise(STD)),
    "blur": make_channel(Blur((1, 2, 3), sigma=1.0, kernel_size=3), GaussianNoise(STD)),
    "projection": make_channel(Projection((6,), rows=2), GaussianNoise(STD)),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_posterior_samples_are_exact(name: str) -> None:
    channel, n, dim = CORRUPTIONS[name], 4000, 6
    gen = generator(0)
    d = 0.1 + torch.rand(dim, generator=gen, dtype=torch.float64)
    v = torch.randn(dim, 2, generator=gen, dtype=torch.float64)
    mean = torch.randn(dim, generator=gen, dtype=torch.float64)
    one = channel.draw(torch.randn(1, *channel.shape, generator=gen), gen)
    measurement = Measurement(*(f.expand(n, *f.shape[1:]) for f in one))
    gaussian = GaussianPosterior(mean, DPLRCovariance(d, v), channel)
    with seeded(1):
        x = gaussian.draw(measurement).flatten(1).double()
    a = dense(channel, one)
    cov = torch.diag(d) + v @ v.mT
    expected_mean, expected_cov = exact_posterior(mean, cov, a, one.y.double())
    torch.testing.assert_close(
        gaussian.mean(one).flatten(1).double(), expected_mean, rtol=1e-5, atol=1e-5
    )
    whiten = torch.linalg.inv(torch.linalg.cholesky(expected_cov[0]))
    z = (x - expected_mean) @ whiten.mT
    # Monte Carlo: 4.5 standard errors.
    assert z.mean(dim=0).abs().max() < 4.5 / math.sqrt(n)
    assert (torch.cov(z.mT) - torch.eye(dim)).abs().max() < 4.5 * math.sqrt(2 / n)


def log_likelihood(mean: Tensor, cov: Tensor, a: Tensor, y: Tensor) -> float:
    noise = STD**2 * torch.eye(a.shape[1], dtype=a.dtype)
    normal = torch.distributions.MultivariateNormal(a @ mean, a @ cov @ a.mT + noise)
    return float(normal.log_prob(y.flatten(1)).mean())


def test_em_iterates_are_the_exact_ones() -> None:
    """Monte Carlo EM follows the closed-form iterates, and its likelihood rises to the truth's."""
    n, dim, iterations = 20000, 3, 150
    gen = generator(2)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-0.3, 0.4, 0.7]]).double()
    true_mean, true_cov = torch.tensor([1.0, -0.5, 0.3]).double(), root @ root.mT
    x = true_mean + torch.randn(n, dim, generator=gen, dtype=torch.float64) @ root.mT
    channel = make_channel(Projection((dim,), rows=2), GaussianNoise(STD))
    measurement = channel.draw(x.float(), gen)
    a, y = dense(channel, measurement), measurement.y.double()

    mean, cov = torch.zeros(dim).double(), torch.eye(dim).double()
    likelihood = [log_likelihood(mean, cov, a, y)]
    for k in range(1, iterations + 1):
        m, c = exact_posterior(mean, cov, a, y)
        mean = m.mean(dim=0)
        cov = torch.cov(m.mT, correction=0) + c.mean(dim=0)
        likelihood.append(log_likelihood(mean, cov, a, y))
        if k in (1, 4, 30):
            with seeded(3):
                fitted = fit_gaussian(channel, measurement, rank=dim, iterations=k, variance=1.0)
            ours = torch.diag(fitted.cov.D) + fitted.cov.V @ fitted.cov.V.mT  # type: ignore[attr-defined]
            # Monte Carlo: one sample a measurement moves an iterate by at most its standard
            # error, and EM contracts what earlier iterations moved: 1 / (1 - rate), at a rate of
            # missing information of 1/2 at most here, doubles it. 4 standard errors.
            scale = 4 * 2 * math.sqrt(2 / n) * float(true_cov.diag().max())
            assert (fitted.prior_mean - mean).abs().max() < scale
            assert (ours - cov).abs().max() < scale
    assert all(b >= a - 1e-9 for a, b in pairwise(likelihood))
    # The fixed point: as likely as the truth (the maximum can only be above it), and near it.
    assert likelihood[-1] > log_likelihood(true_mean, true_cov, a, y) - 1e-4
    assert (mean - true_mean).abs().max() < 4 * 2 * math.sqrt(float(true_cov.diag().max()) / n)


def test_low_rank_fit_keeps_the_variances() -> None:
    """A rank below D keeps each entry's variance and the leading directions."""
    n = 5000
    gen = generator(4)
    v = torch.tensor([[2.0], [1.0], [-1.0], [0.5]])
    x = torch.randn(n, 1, generator=gen) @ v.mT + 0.3 * torch.randn(n, 4, generator=gen)
    channel = make_channel(Mask((4,), rho=0.0), GaussianNoise(0.05))
    with seeded(5):
        fitted = fit_gaussian(channel, channel.draw(x, gen), rank=1, iterations=10)
    cov = fitted.cov
    assert isinstance(cov, DPLRCovariance)
    ours = torch.diag(cov.D) + cov.V @ cov.V.mT
    expected = (v @ v.mT + 0.09 * torch.eye(4)).double()
    # Monte Carlo: 4 standard errors of a variance as large as the largest.
    assert (ours - expected).abs().max() < 4 * math.sqrt(2 / n) * float(expected.max())


@pytest.mark.parametrize("name", ["mask", "projection"])
def test_observed_variance_is_the_entries_own(name: str) -> None:
    """x ~ N(mean, v I): entries of a mask and unit rows measure the variance v themselves."""
    n, v = 20000, 0.3
    channel = CORRUPTIONS[name]
    x = math.sqrt(v) * torch.randn(n, *channel.shape, generator=generator(30))
    if name == "mask":
        x = x + torch.randn(1, *channel.shape, generator=generator(31))  # a mean of its own
    found = observed_variance(channel, channel.draw(x, generator(32)))
    entries = float(channel.measured_mask(*channel.draw(x, generator(32))[:2]).sum())
    # Monte Carlo: a variance v + STD² of so many entries.
    assert abs(found - v) < 4.5 * (v + STD**2) * math.sqrt(2 / entries)


def test_directions_that_nothing_measures_keep_the_start() -> None:
    channel = make_channel(Blur((1, 2, 8), sigma=2.0, kernel_size=3), GaussianNoise(STD))
    x = 0.5 * torch.randn(500, 1, 2, 8, generator=generator(33))
    measurement = channel.draw(x, generator(34))
    spectrum = channel.spectrum(measurement.operator)
    assert spectrum is not None
    left = spectrum.square.flatten() < 1e-3
    assert left.any()
    for variance in (0.01, 0.2):
        with seeded(35):
            fitted = fit_gaussian(channel, measurement, rank=16, iterations=3, variance=variance)
        cov = fitted.cov(torch.eye(16, dtype=torch.float64))
        z = torch.stack([spectrum.analyse(c.view(1, 1, 2, 8)).flatten() for c in cov])
        z = torch.stack([spectrum.analyse(c.view(1, 1, 2, 8)).flatten() for c in z.mT])
        assert (z.diagonal()[left] / variance - 1).abs().max() < 0.3  # 4.5 √(2 / 500)
