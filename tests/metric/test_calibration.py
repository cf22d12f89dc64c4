"""Calibration: what is right passes, and each way of being wrong is found out.

Show 2 of issue 14, on linear-Gaussian problems with the exact posterior as the sampler:
x ~ N(0, I) is measured as y = x + σ ε, so that x | y ~ N(y / (1 + σ²), σ² / (1 + σ²)).
"""

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from diffem.metric.calibration import DISTANCE, Calibration, _anderson_darling, calibrate

NOISE = 0.7
STD = math.sqrt(NOISE**2 / (1 + NOISE**2))
B, D, N = 256, 16, 32


def run(
    seed: int = 0,
    *,
    scale: float = 1.0,
    shift: float = 0.0,
    ignores_y: bool = False,
    size: tuple[int, int] = (B, N),
) -> Calibration:
    """Returns the calibration of a sampler.

    Arguments:
        seed: The seed.
        scale: What the exact standard deviation is multiplied by.
        shift: What is added to the exact mean, in standard deviations.
        ignores_y: Whether the sampler draws from the prior.
        size: The numbers of measurements and of samples.
    """
    g = torch.Generator().manual_seed(seed)
    (measurements, n), shape = size, (D,)
    x = torch.randn(measurements, *shape, generator=g)
    y = x + NOISE * torch.randn(x.shape, generator=g)
    z = torch.randn(n, *x.shape, generator=g)
    mean = y / (1 + NOISE**2) + shift * STD
    samples: Tensor = z if ignores_y else mean + scale * STD * z
    return calibrate(x, samples, y, g)


def test_the_exact_posterior_is_calibrated() -> None:
    """Within four standard errors, each of which is right within a factor of 1.3."""
    found = run()
    assert found.p["all"] > 0.01
    for level, fraction in (("50", 0.5), ("90", 0.9)):
        value, error = found.coverage[level]
        assert abs(value - fraction) < 4 * error
        # Pixels are independent here: a binomial of B D values.
        binomial = math.sqrt(fraction * (1 - fraction) / (B * D))
        assert error == pytest.approx(binomial, rel=0.3)
    for (value, error), relative in ((found.spread, 2.0), (found.factor, 1.0)):
        assert abs(value - 1) < 4 * error
        # Of B D square errors, each with a relative variance of 2; the variances add 2 / (n - 1).
        deviation = relative * math.sqrt((2 + 2 / (N - 1)) / (B * D)) / 2
        assert error == pytest.approx(deviation, rel=0.3)
    # CRPS of N(m, s²) and x ~ N(m, s²): s / √π.
    value, error = found.crps
    assert abs(value - STD / math.sqrt(math.pi)) < 4 * error
    curve = torch.tensor(found.tarp["coverage"]) - torch.tensor(found.tarp["levels"])
    assert float(curve.abs().max()) < 1.63 / math.sqrt(B)  # Kolmogorov-Smirnov, 1 in 100


def test_halved_spread_is_found() -> None:
    """Central intervals of half the width: 2 Φ(z / 2) - 1 of them hold x, and s = 2."""
    found = run(scale=0.5)
    assert found.p["all"] < 0.01 and found.p["ranks"] < 0.01
    normal = torch.distributions.Normal(0, 1)
    for level, z in (("50", 0.6745), ("90", 1.6449)):
        expected = 2 * float(normal.cdf(torch.tensor(z / 2))) - 1
        value, error = found.coverage[level]
        # The interval of n samples is as wide as that of infinitely many up to 1 / n.
        assert abs(value - expected) < 4 * error + 1 / N
    value, error = found.factor
    assert abs(value - 2) < 4 * error
    value, error = found.spread
    expected = 0.25 * (1 + 1 / N) / (1 + 0.25 / N)
    assert abs(value - expected) < 4 * error


def test_shifted_mean_is_found() -> None:
    found = run(shift=0.5)
    assert found.p["all"] < 0.01 and found.p["ranks"] < 0.01
    assert found.quantities["mean"] == 1 / 1000
    assert found.factor[0] > 1 + 4 * found.factor[1]  # √1.25 on average: it hides the bias


def test_a_sampler_that_ignores_y_is_found_by_the_distance_to_y_alone() -> None:
    """Its samples and x are both of the prior: any function of x alone is calibrated."""
    found = run(ignores_y=True)
    assert found.p["ranks"] > 0.01 and abs(found.coverage["90"][0] - 0.9) < 0.01
    assert found.quantities[DISTANCE] == found.p["tarp"] == 1 / 1000
    assert found.p["all"] < 0.01


def test_p_values_of_a_right_sampler_are_uniform() -> None:
    """Over 100 runs; few measurements and samples, where an approximation would show."""
    runs = [run(seed, size=(20, 7)) for seed in range(100)]
    for name in ("ranks", "tarp", "all"):
        assert kstest([found.p[name] for found in runs], "uniform").pvalue > 0.01, name


@pytest.mark.parametrize("n", [2, 5, 9])
def test_coverage_and_spread_are_exact_for_few_samples(n: int) -> None:
    found = run(size=(2000, n))
    for level, fraction in (("50", 0.5), ("90", 0.9)):
        value, error = found.coverage[level]
        assert abs(value - fraction) < 4 * error
    assert abs(found.spread[0] - 1) < 4 * found.spread[1]
    assert abs(found.factor[0] - 1) < 4 * found.factor[1]


def test_equal_values_are_ranked_at_random() -> None:
    """Flat pixels, such as a black border, are in no interval by chance alone."""
    g = torch.Generator().manual_seed(0)
    flat = torch.zeros(400, D)
    found = calibrate(flat, flat.expand(9, -1, -1), flat, g)
    value, error = found.coverage["50"]
    assert abs(value - 0.5) < 4 * error
    assert found.p["all"] > 0.01


def test_maps_and_plain_types() -> None:
    found = run(scale=0.5)
    assert all(found.maps[name].shape == (D,) for name in ("coverage", "std", "error"))
    assert float(found.maps["std"].mean()) == pytest.approx(0.5 * STD, rel=0.05)
    assert float(found.maps["error"].mean()) == pytest.approx(STD, rel=0.05)
    plain = found.to_plain()
    assert plain["factor"] == {"value": found.factor[0], "error": found.factor[1]}
    assert sum(plain["histograms"]["pixels"]) == B * D


def test_the_statistic_is_anderson_darling_s() -> None:
    """Computed from the sorted values, as it is defined."""
    ranks = torch.randint(8, (50,), generator=torch.Generator().manual_seed(0))
    u = ((ranks + 1) / 9).double().sort().values
    i = torch.arange(50)
    expected = -50 - float(((2 * i + 1) * (u.log() + (1 - u.flip(0)).log())).mean())
    counts = ranks.bincount(minlength=8).double()[None]
    assert float(_anderson_darling(counts)) == pytest.approx(expected)
