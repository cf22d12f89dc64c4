"""Reflected noise: the fold, its kernel's score, and what a denoiser of it learns."""

import math

import pytest
import torch
from azula.noise import VESchedule
from torch import Tensor

from diffem.denoiser.reflected import SWITCH, fold, reflect, reflected_mean
from diffem.runtime.rng import generator, seeded

LEVELS = (0.005, 0.05, 0.3, SWITCH - 1e-6, SWITCH, 1.0, 2.0, 5.0)


def density(x: Tensor, x_t: Tensor, sigma: float) -> Tensor:
    """Returns p(x_t | x), summed over so many images that the rest is below 1e-16 for σ <= 5."""
    shifts = 4.0 * torch.arange(-15, 16, dtype=torch.float64)
    images = torch.cat([x[..., None] + shifts, 2 - x[..., None] + shifts], dim=-1)
    normal = torch.exp(-((x_t[..., None] - images) ** 2) / (2 * sigma**2))
    return normal.sum(dim=-1) / (sigma * math.sqrt(2 * math.pi))


def test_fold_is_a_reflection_into_the_range() -> None:
    x = torch.tensor([-1.0, -0.3, 0.0, 0.8, 1.0, 1.25, 3.0, 3.5, 5.5, -1.25, -3.5, 403.5])
    expected = [-1.0, -0.3, 0.0, 0.8, 1.0, 0.75, -1.0, -0.5, 0.5, -0.75, 0.5, -0.5]
    torch.testing.assert_close(fold(x), torch.tensor(expected), atol=1e-4, rtol=0)
    wild = torch.randn(100_000, generator=generator(0)) * torch.logspace(-9, 9, 100_000)
    assert fold(wild).abs().max() <= 1  # exactly


@pytest.mark.parametrize("sigma", LEVELS)
def test_the_mean_is_that_of_the_summed_density_s_score(sigma: float) -> None:
    """By autograd in float64; m is compared, whose scale is that of x."""
    grid = torch.linspace(-1, 1, 41, dtype=torch.float64)
    x, x_t = (each.flatten() for each in torch.meshgrid(grid, grid, indexing="ij"))
    if sigma < 0.1:  # elsewhere p underflows
        x_t = fold(x + 4 * sigma * torch.sin(37 * x_t))
    x_t.requires_grad_()
    (score,) = torch.autograd.grad(density(x, x_t, sigma).log().sum(), x_t)
    x_t = x_t.detach()
    m = reflected_mean(x, x_t, torch.full_like(x, sigma))
    torch.testing.assert_close(m, x_t + sigma**2 * score, atol=1e-4 * sigma**2, rtol=1e-7)
    single = reflected_mean(x.float(), x_t.float(), torch.full_like(x, sigma).float())
    torch.testing.assert_close(single.double(), m, atol=2e-5, rtol=0)


@pytest.mark.parametrize("sigma", LEVELS)
def test_the_score_of_a_uniform_law_is_zero(sigma: float) -> None:
    """E[m | x_t] = x_t where x is uniform on [-1, 1], by the midpoint rule."""
    step = min(1e-3, sigma / 20)
    x = torch.arange(-1 + step / 2, 1, step, dtype=torch.float64)
    for x_t in (-1.0, -0.97, -0.2, 0.0, 0.5, 1.0):
        to = torch.full_like(x, x_t)
        p = density(x, to, sigma)
        m = (p * reflected_mean(x, to, torch.full_like(x, sigma))).sum() / p.sum()
        assert float(m) == pytest.approx(x_t, abs=1e-4 * sigma**2)


def test_without_borders_the_mean_is_x() -> None:
    x = torch.full((5,), 0.1)
    x_t = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.3])
    torch.testing.assert_close(reflected_mean(x, x_t, torch.full((5,), 0.1)), x)


def test_what_is_drawn_has_the_law_of_the_kernel() -> None:
    """In ten bins, by χ² with 9 degrees of freedom: 33 is exceeded once in 7,000 times."""
    schedule, n = VESchedule(0.005, 5.0), 20_000
    x = torch.full((n, 1), 0.9)
    for t in (0.5, 0.7, 0.8, 1.0):
        with seeded(f"{t}"):
            x_t, m = reflect(schedule, x, torch.full((n,), t))
        assert x_t.abs().max() <= 1 and m.shape == x.shape
        sigma = float(schedule(torch.tensor(t))[1])
        fine = torch.linspace(-1, 1, 10_001, dtype=torch.float64)
        p = density(torch.full_like(fine, 0.9), fine, sigma)
        mass = torch.trapezoid(p.unfold(0, 1001, 1000), dx=2e-4)
        expected = n * mass
        found = torch.histc(x_t, bins=10, min=-1, max=1).double()
        assert mass.sum() == pytest.approx(1, abs=1e-6)
        seen = expected > 5
        assert ((found - expected).square() / expected)[seen].sum() < 33
        assert found[~seen].sum() <= expected[~seen].sum() + 15
