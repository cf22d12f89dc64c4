"""Noise models: their moments, the residual statistic of the truth, what fits them."""

import math
from functools import partial

import pytest
import scipy.stats
import torch
from azula.noise import VESchedule
from azula.sample import DDPMSampler
from exact import Zero
from torch import Tensor

from diffem.corruption import (
    Blur,
    Channel,
    Denoising,
    Downsample,
    GaussianNoise,
    LinearChannel,
    LinearGaussianChannel,
    Mask,
    Measurement,
    Noise,
    PoissonGaussianNoise,
    PoissonNoise,
    Projection,
    SpeckleNoise,
    make_channel,
    require,
)
from diffem.corruption.noise import poisson_quantile
from diffem.denoiser import Denoiser
from diffem.posterior import DPS, MMPS, DiffPIR, Isotropic, PiGDM, Restoration, SplitGibbs
from diffem.runtime.errors import UserError

SCHEDULE = VESchedule(0.02, 20.0)
PHOTONS, BACKGROUND, STD, SPECKLE = 20.0, 1.5, 0.2, 0.3
NOISES = {
    "gaussian": GaussianNoise(STD),
    "poisson": PoissonNoise(PHOTONS, BACKGROUND),
    "poisson_gaussian": PoissonGaussianNoise(PHOTONS, STD, BACKGROUND),
    "speckle": SpeckleNoise(SPECKLE, STD),
}
OPERATORS = {
    "mask": Mask((1, 8, 8), rho=0.5),
    "blur": Blur((1, 8, 8), sigma=1.0, kernel_size=5),
    "downsample": Downsample((1, 8, 8), factor=2),
    "denoising": Denoising((1, 8, 8)),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int) -> Tensor:
    """Returns images in [-1, 1], (n, 1, 8, 8), a fifth of their pixels dark and a fifth bright."""
    return (3.2 * torch.rand(n, 1, 8, 8, generator=seeded(0)) - 1.6).clamp(-1, 1)


def stated_variance(name: str, mean: Tensor) -> Tensor:
    """Returns V[y | A x] by the formulae of the docstrings."""
    poisson = 4 * (PHOTONS * (mean + 1) / 2 + BACKGROUND) / PHOTONS**2
    gaussian = torch.full_like(mean, STD**2)
    speckle = 4 * SPECKLE**2 * ((mean + 1) / 2) ** 2
    return {
        "gaussian": gaussian,
        "poisson": poisson,
        "poisson_gaussian": poisson + gaussian,
        "speckle": speckle + gaussian,
    }[name]


@pytest.mark.parametrize("name", NOISES)
def test_moments(name: str) -> None:
    """Mean A x and the stated variance, dark and bright pixels alike."""
    n, noise = 40000, NOISES[name]
    for level in (-1.0, -0.5, 0.0, 1.0):
        mean = torch.full((n, 1), level)
        y = noise.draw(mean, noise.draw_parameters(n, seeded(1)), seeded(2))[:, 0].double()
        var = float(stated_variance(name, mean[:1]))
        # Monte Carlo: 4.5 standard errors. The fourth moment of a Poisson law of rate λ is
        # 3 λ² + λ, so its variance has the relative variance (2 + 1/λ) / n, λ >= BACKGROUND.
        assert abs(float(y.mean()) - level) < 4.5 * math.sqrt(var / n)
        assert abs(float(y.var()) / var - 1) < 4.5 * math.sqrt((2 + 1 / BACKGROUND) / n)
        stated = noise.variance(mean, noise.draw_parameters(n, seeded(1)))
        torch.testing.assert_close(stated.expand(n, 1), torch.full((n, 1), var))


@pytest.mark.parametrize("name", NOISES)
def test_common_random_numbers_give_near_means_near_measurements(name: str) -> None:
    noise, n = NOISES[name], 50_000
    first, second = torch.full((n, 1), 0.1), torch.full((n, 1), 0.12)
    parameters = noise.draw_parameters(n, torch.Generator().manual_seed(0))
    a, b = (
        noise.draw_paired(mean, parameters, torch.Generator().manual_seed(1))
        for mean in (first, second)
    )
    variance = noise.variance(first, parameters).mean()
    assert a.mean() == pytest.approx(0.1, abs=4 * math.sqrt(variance / n))
    assert a.var() == pytest.approx(float(variance), rel=0.05)
    assert (b - a).mean() == pytest.approx(0.02, abs=0.004)
    assert (b - a).var() < variance / 20  # of independent draws it is 2 V


@pytest.mark.parametrize("rate", [1e-6, 0.3, 7.5, 4000.0, 1e9])
def test_quantiles_of_counts_are_those_of_scipy(rate: float) -> None:
    given = torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.cat([given, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)])
    found = poisson_quantile(p, torch.full_like(p, rate))
    expected = torch.from_numpy(scipy.stats.poisson.ppf(p.numpy(), rate)).clamp(min=0)
    wrong = (found - expected).abs()
    assert wrong[:-1].count_nonzero() <= 2  # where p is within rounding of a step
    assert wrong[-1] <= 1e-3 * (rate + 1000)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", NOISES)
def test_the_residual_statistic_of_the_truth_is_one(name: str, operator: str) -> None:
    x = images(2000)
    channel = make_channel(OPERATORS[operator], NOISES[name])
    measurement = channel.draw(x, seeded(3))
    measured = channel.measured_mask(measurement.y, measurement.operator).flatten(1).sum(dim=1)
    statistic = channel.residual_chi2(measurement, x)
    # Monte Carlo: the square of a standardised entry has variance at most 2 + 1/λ, as above.
    bound = 4.5 * math.sqrt((2 + 1 / BACKGROUND) * float((1 / measured).mean()) / len(x))
    assert abs(float(statistic.mean()) - 1) < bound


def test_the_wrong_number_of_photons_is_seen() -> None:
    """The statistic can fail: with half the photons assumed, residuals are half as large."""
    x = images(500)
    measurement = make_channel(Denoising((1, 8, 8)), PoissonNoise(100.0)).draw(x, seeded(4))
    assumed = make_channel(Denoising((1, 8, 8)), PoissonNoise(50.0))
    statistic = assumed.residual_chi2(assumed.assume(measurement), x)
    assert 0.4 < float(statistic.mean()) < 0.6


@pytest.mark.parametrize("fraction", [0.25, 0.8])
@pytest.mark.parametrize("name", ["gaussian", "poisson"])
def test_two_parts_of_a_measurement_are_independent_measurements(
    name: str, fraction: float
) -> None:
    """Each has the law of the noise's own draws under its parameters; a and b are uncorrelated."""
    noise, n = NOISES[name], 200_000
    mean = torch.full((n, 2), 0.3)
    parameters = noise.draw_parameters(n, torch.Generator().manual_seed(0))
    y = noise.draw(mean, parameters, torch.Generator().manual_seed(1))
    parts = noise.split(y, parameters, fraction, torch.Generator().manual_seed(2))
    assert parts is not None
    for k, (part, own) in enumerate(parts):
        drawn = noise.draw(mean, own, torch.Generator().manual_seed(3 + k))
        variance = noise.variance(mean, own)[0].max()
        # Of n values the mean has the standard error √(V / n), the variance V √(2 / n) and more
        # where there is kurtosis, and quantiles as below.
        assert abs(part.mean() - 0.3) < 4 * (variance / (2 * n)) ** 0.5
        assert abs(part.var() / variance - 1) < 6 * (2 / n) ** 0.5
        levels = torch.linspace(0.05, 0.95, 10)
        ours, theirs = (torch.quantile(x.flatten()[:n], levels) for x in (part, drawn))
        step = 2 / own[0, 0] if name == "poisson" else 0.02 * variance**0.5  # of counts
        assert (ours - theirs).abs().max() <= step * 1.001
    (a, _), (b, _) = parts
    correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
    assert abs(correlation) < 4 / (2 * n) ** 0.5


@pytest.mark.parametrize("fraction", [1e-6, 1 - 1e-6])
def test_a_part_of_very_few_photons_has_no_bias(fraction: float) -> None:
    """1 - 1e-6 is 1 - 1.013e-6 in float32: the few photons that are hidden were 1.3 % too many."""
    noise, n = PoissonNoise(1e6), 500_000
    mean, parameters = torch.ones(n, 1), torch.full((n, 1), 1e6)
    y = noise.draw(mean, parameters, seeded(1))
    for part, own in noise.split(y, parameters, fraction, seeded(2)) or ():
        variance = noise.variance(mean[:1], own[:1])
        assert abs(part.double().mean() - 1) < 4.5 * (variance / n) ** 0.5


def test_noise_that_cannot_be_split() -> None:
    y, generator = torch.zeros(3, 2), torch.Generator().manual_seed(0)
    for name in ("poisson_gaussian", "speckle"):
        noise = NOISES[name]
        parameters = noise.draw_parameters(3, generator)
        assert noise.split(y, parameters, 0.5, generator) is None


@pytest.mark.parametrize("name", NOISES)
def test_entries_are_independent(name: str) -> None:
    n = 20000
    channel = make_channel(Denoising((2,)), NOISES[name])
    y = channel.draw(torch.zeros(n, 2), seeded(5)).y
    assert abs(float(torch.corrcoef(y.mT)[0, 1])) < 4.5 / math.sqrt(n)


def test_the_network_sees_the_noise_s_parameters() -> None:
    """A photon number of each sample's own is one more map, as the width of the noise it makes."""
    noise = PoissonGaussianNoise((10.0, 1000.0), (0.01, 0.1))
    channel = make_channel(Denoising((1, 4, 4)), noise)
    measurement = channel.draw(torch.zeros(6, 1, 4, 4), seeded(6))
    photons, std = measurement.noise.unbind(dim=1)
    assert len(photons.unique()) == len(std.unique()) == 6
    embedding = channel.embed(measurement)
    assert embedding.shape == (6, 3, 4, 4)
    torch.testing.assert_close(embedding[:, 1, 0, 0], 2 / photons.sqrt())
    torch.testing.assert_close(embedding[:, 2, 0, 0], std)


def test_classes_follow_the_noise() -> None:
    operator = Mask((1, 8, 8), rho=0.5)
    assert isinstance(make_channel(operator, GaussianNoise(0.1)), LinearGaussianChannel)
    for noise in (PoissonNoise(10.0), PoissonGaussianNoise(10.0, 0.1), SpeckleNoise(0.3, 0.1)):
        channel = make_channel(operator, noise)
        assert isinstance(channel, LinearChannel)
        assert not isinstance(channel, LinearGaussianChannel)


class Saturation(Channel):
    """A channel that is not linear: y = clip(2 x, -1, 1)."""

    def draw(self, x: Tensor, generator: torch.Generator) -> Measurement:
        return Measurement.of((2 * x).clamp(-1, 1))

    def embed(self, measurement: Measurement) -> Tensor:
        return measurement.y


def poisson() -> LinearChannel:
    return make_channel(Mask((1, 8, 8), rho=0.5), PoissonNoise(10.0))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: require(poisson(), LinearGaussianChannel, "method.posterior=MMPS"),
            "method.posterior=MMPS needs a linear channel with Gaussian noise, got Mask with "
            "PoissonNoise; choose method=diffem, which takes every channel, or a corruption with",
        ),
        (
            lambda: require(Saturation((1, 8, 8)), LinearChannel, "this"),
            "this needs a linear channel, got Saturation; choose a corruption with a linear",
        ),
        (
            lambda: make_channel(Projection((5,), rows=2), PoissonNoise(10.0)),
            "PoissonNoise needs an operator under which an intensity stays one",
        ),
        (
            lambda: make_channel(Mask((1, 8, 8), rho=0.5), PoissonNoise(9.0), learn=["noise"]),
            "corruption.learn can name photons of this corruption, got 'noise'",
        ),
        (
            lambda: make_channel(
                Mask((1, 8, 8), rho=0.5), PoissonGaussianNoise(9.0, 0.1), learn=["background"]
            ),
            "corruption.learn can name photons, noise of this corruption, got 'background'",
        ),
        (
            lambda: make_channel(
                Mask((1, 8, 8), rho=0.5), PoissonNoise((2.0, 9.0)), learn=["photons"]
            ),
            "corruption.noise.photons must be one number, the start, where corruption.learn names",
        ),
        (lambda: PoissonNoise(0.0), "corruption.noise.photons must be a positive number"),
        (lambda: PoissonNoise((9.0, 2.0)), "0 < low <= high"),
        (lambda: PoissonNoise(9.0, 0.0), "corruption.noise.background must be a positive number"),
        (lambda: PoissonGaussianNoise(9.0, -1.0), "corruption.noise.std must be a positive"),
    ],
)
def test_what_does_not_fit(build: object, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        build()  # type: ignore[operator]
    assert sentence in str(error.value)


@pytest.mark.parametrize("noise", [NOISES["poisson"], NOISES["poisson_gaussian"]])
def test_chi2_based_parts_refuse_other_noise(noise: Noise) -> None:
    """The square error and the guidance of the rivals are those of Gaussian noise."""
    channel = make_channel(OPERATORS["mask"], noise)
    assert not hasattr(channel, "square_error")
    sampler = partial(DDPMSampler, steps=4)
    denoiser = Denoiser(Zero(), SCHEDULE)
    for posterior in (
        partial(MMPS, sampler=sampler, solver="cg", iterations=1),
        partial(DPS, sampler=sampler, zeta=1.0),
        partial(DiffPIR, sampler=sampler, lmbda=1.0, iterations=1),
        partial(PiGDM, sampler=sampler, covariance=Isotropic(1.0)),
        partial(SplitGibbs, sampler=sampler, coupling=(3.0, 0.1), sweeps=2),
        Restoration,
    ):
        with pytest.raises(UserError, match="needs a linear channel with Gaussian noise"):
            posterior(denoiser, channel)  # type: ignore[arg-type]
