"""The law of residuals: known answers, and what χ² does not see."""

import math

import pytest
import torch
from torch import Tensor

from diffem.corruption import (
    Blur,
    Denoising,
    GaussianNoise,
    LinearChannel,
    Mask,
    Noise,
    PoissonNoise,
    make_channel,
)
from diffem.metric.residual_law import ResidualLaw, residual_law

SHAPE, N = (1, 8, 8), 64


def law(channel: LinearChannel, *, seed: int = 0, residual: Tensor | None = None) -> ResidualLaw:
    """Returns that of true images, or of those that leave some standardised residuals."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(N, *SHAPE, generator=draw)
    measurement = channel.draw(x, draw)
    if residual is not None:
        x = measurement.y - 0.1 * residual
    found = residual_law(channel, measurement, x, draw)
    assert found is not None
    return found


def normal(seed: int = 0) -> Tensor:
    return torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(100 + seed))


WHITE = make_channel(Denoising(SHAPE), GaussianNoise(0.1))


@pytest.mark.parametrize(
    ("operator", "noise"),
    [
        (Denoising(SHAPE), GaussianNoise(0.1)),
        (Mask(SHAPE, rho=0.5), GaussianNoise(0.1)),
        (Blur(SHAPE, sigma=1.0, kernel_size=5), GaussianNoise(0.1)),
        (Denoising(SHAPE), PoissonNoise(200.0)),
    ],
)
def test_true_images_stay_within_what_is_expected(operator: Denoising, noise: Noise) -> None:
    """A worst pixel exceeds 1 in 5 of 100 runs; P(more than 7 of 40) = 0.001."""
    channel = make_channel(operator, noise)
    laws = [law(channel, seed=seed) for seed in range(40)]
    assert sum(each.pixel > 1 for each in laws) <= 7
    assert sum((each.frequency or 0) > 1 for each in laws) <= 7  # a mask has none
    # The mean of √m D is √(π/2) log 2 = 0.87 of m independent values, with a deviation of 0.26.
    m = N * 64 * (0.5 if isinstance(operator, Mask) else 1) * 4 / 5
    mean = sum(each.ks for each in laws) / len(laws)
    assert abs(mean * math.sqrt(m) - 0.87) < 4 * 0.27 / math.sqrt(len(laws))


@pytest.mark.parametrize("std", [0.5, 0.8, 1.2])
def test_the_distance_is_that_of_the_closed_form(std: float) -> None:
    """sup |Φ(r / s) - Φ(r)| is at r² = 2 s² log(s) / (s² - 1); within 1.6 / √m, of 1 in 100."""
    r = math.sqrt(2 * std**2 * math.log(std) / (std**2 - 1))
    cdf = torch.distributions.Normal(0, 1).cdf
    expected = abs(float(cdf(torch.tensor(r / std)) - cdf(torch.tensor(r))))
    found = law(WHITE, residual=std * normal())
    assert abs(found.ks - expected) < 1.6 / math.sqrt(N * 64 * 4 / 5)
    assert 0 < found.ks_error < 0.03


def test_residuals_of_another_law_with_the_same_chi2_are_seen() -> None:
    """Signs have χ² = 1 exactly; their distance from a normal law is Φ(1) - 1/2."""
    found = law(WHITE, residual=normal().sign())
    assert abs(found.ks - 0.3413) < 0.03


def test_a_bad_pixel_and_a_bad_frequency_are_seen() -> None:
    residual = normal()
    residual[..., 3, 3] *= 2
    found = law(WHITE, residual=residual)
    assert found.pixel > 1.5 and found.ks < 0.03
    wave = torch.cos(2 * math.pi * 2 * torch.arange(8) / 8).expand(SHAPE)
    amplitude = 0.3 * torch.randn(N, 1, 1, 1, generator=torch.Generator().manual_seed(7))
    found = law(WHITE, residual=normal() + amplitude * wave)
    assert found.frequency is not None and found.frequency > 1.5 and found.pixel < 1.2


def test_masks_have_no_frequencies_and_nothing_measured_no_law() -> None:
    channel = make_channel(Mask(SHAPE, rho=0.5), GaussianNoise(0.1))
    assert law(channel).frequency is None
    draw = torch.Generator().manual_seed(0)
    measurement = channel.draw(torch.zeros(N, *SHAPE), draw)
    nothing = measurement._replace(operator=torch.zeros_like(measurement.operator))
    assert residual_law(channel, nothing, torch.zeros(N, *SHAPE), draw) is None
