"""Law 8: every corruption keeps its law."""

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d, pad

from diffem.corruption import (
    Blur,
    Corruption,
    Denoising,
    Downsample,
    GaussianNoise,
    Mask,
    Projection,
)
from diffem.runtime.errors import UserError

STD = 0.1
CORRUPTIONS = {
    "mask": lambda noise: Mask((3, 8, 6), noise, rho=0.4),
    "mask of signals": lambda noise: Mask((2, 16), noise, rho=0.4),
    "mask of vectors": lambda noise: Mask((7,), noise, rho=0.4),
    "blur": lambda noise: Blur((3, 8, 6), noise, sigma=(0.5, 2.0), kernel_size=7),
    "blur of signals": lambda noise: Blur((2, 16), noise, sigma=1.0, kernel_size=5),
    "downsample": lambda noise: Downsample((3, 8, 6), noise, factor=2),
    "noise": lambda noise: Denoising((3, 8, 6), noise),
    "projection": lambda noise: Projection((5,), noise, rows=2),
}


@pytest.fixture(params=CORRUPTIONS)
def corruption(request: pytest.FixtureRequest) -> Corruption:
    return CORRUPTIONS[request.param](GaussianNoise(STD))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_adjoint(corruption: Corruption) -> None:
    gen = seeded(0)
    x = torch.randn(4, *corruption.shape, generator=gen, dtype=torch.float64)
    operator = corruption.draw_operator(4, gen)
    ax = corruption.apply(x, operator)
    v = torch.randn(ax.shape, generator=gen, dtype=torch.float64)
    left = (ax * v).flatten(1).sum(dim=1)
    right = (x * corruption.adjoint(v, operator)).flatten(1).sum(dim=1)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_noise_has_the_stated_moments(corruption: Corruption) -> None:
    n = 4000
    x = torch.randn(n, *corruption.shape, generator=seeded(1))
    measurement = corruption.draw(x, seeded(2))
    y, operator, std = measurement
    observed = corruption.observed(y, operator).bool()
    noise = ((y - corruption.apply(x, operator)) / STD)[observed]
    bound = 4 / math.sqrt(noise.numel())  # Monte Carlo: 4 standard errors
    assert abs(noise.mean()) < bound
    assert abs(noise.var() - 1) < bound * math.sqrt(2)  # the variance of a squared normal is 2
    assert (y[~observed] == 0).all()
    assert (std == STD).all()


def test_chi2_of_the_truth_is_one(corruption: Corruption) -> None:
    n = 4000
    x = torch.randn(n, *corruption.shape, generator=seeded(3))
    measurement = corruption.draw(x, seeded(4))
    measured = corruption.observed(measurement.y, measurement.operator).flatten(1).sum(dim=1)
    chi2 = corruption.residual_chi2(measurement, x)[measured > 0]
    # A mean of squared normals over M entries has variance 2 / M.
    bound = 4 * math.sqrt(float((2 / measured[measured > 0]).mean()) / len(chi2))
    assert abs(chi2.mean() - 1) < bound


def test_log_likelihood_is_the_normal_density(corruption: Corruption) -> None:
    x = torch.randn(5, *corruption.shape, generator=seeded(5), dtype=torch.float64)
    measurement = corruption.draw(x.float(), seeded(6)).to(torch.float64)
    y, operator, _ = measurement
    density = torch.distributions.Normal(corruption.apply(x, operator), STD).log_prob(y)
    expected = (density * corruption.observed(y, operator)).flatten(1).sum(dim=1)
    torch.testing.assert_close(
        corruption.log_likelihood(measurement, x), expected, rtol=1e-6, atol=1e-6
    )


def test_drawing_again_is_independent(corruption: Corruption) -> None:
    n = 4000
    x = torch.zeros(n, *corruption.shape)
    gen = seeded(7)
    first, second = corruption.draw(x, gen), corruption.draw(x, gen)
    for a, b in zip(first, second, strict=True):
        a, b = a.reshape(n, -1), b.reshape(n, -1)
        if a.shape[1] == 0 or a.std() == 0:
            continue  # an operator without parameters, a fixed noise level
        centred = (a - a.mean(dim=0)) * (b - b.mean(dim=0))
        # Monte Carlo: products of independent values average to 0 within 4.5 standard errors (of
        # up to 144 entries, one in 150,000 is further off).
        error = a.std(dim=0) * b.std(dim=0) / math.sqrt(n)
        assert (centred.mean(dim=0).abs() < 4.5 * error + 1e-9).all()


def test_draw_depends_on_its_generator_alone(corruption: Corruption) -> None:
    x = torch.randn(3, *corruption.shape, generator=seeded(8))
    torch.manual_seed(1)
    first = corruption.draw(x, seeded(9))
    torch.manual_seed(2)
    second = corruption.draw(x, seeded(9))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autocast_changes_nothing(corruption: Corruption) -> None:
    x = torch.randn(3, *corruption.shape, generator=seeded(10))
    exact = corruption.draw(x, seeded(11))
    with torch.autocast("cpu", torch.bfloat16):
        cast = corruption.draw(x, seeded(11))
        embedding = corruption.embed(cast)
        chi2 = corruption.residual_chi2(cast, x)
        spectrum = corruption.spectrum(cast.operator)
        assert spectrum is not None
        coefficients = spectrum.analyse(x)
    exact_spectrum = corruption.spectrum(exact.operator)
    assert exact_spectrum is not None
    assert torch.equal(coefficients, exact_spectrum.analyse(x))
    assert all(torch.equal(a, b) for a, b in zip(exact, cast, strict=True))
    assert torch.equal(embedding, corruption.embed(exact))
    assert torch.equal(chi2, corruption.residual_chi2(exact, x))


def test_embedding_is_on_the_grid_and_holds_the_noise_level(corruption: Corruption) -> None:
    x = torch.randn(3, *corruption.shape, generator=seeded(12))
    embedding = corruption.embed(corruption.draw(x, seeded(13)))
    assert embedding.shape[2:] == corruption.shape[1:]
    torch.testing.assert_close(embedding[:, -1], torch.full_like(embedding[:, -1], STD))


def test_spectrum_is_that_of_the_operator(corruption: Corruption) -> None:
    """AᵀA x = V diag(s²) Vᵀ x, and V is orthonormal."""
    gen = seeded(14)
    x = torch.randn(4, *corruption.shape, generator=gen, dtype=torch.float64)
    operator = corruption.draw_operator(4, gen).double()
    spectrum = corruption.spectrum(operator)
    assert spectrum is not None
    expected = corruption.adjoint(corruption.apply(x, operator), operator)
    z = spectrum.analyse(x)
    # The kernels, and the cosines, are computed in float32.
    torch.testing.assert_close(
        spectrum.synthesise(spectrum.square * z), expected, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(spectrum.synthesise(z), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        z.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-5, atol=0
    )


def test_noise_level_drawn_per_sample() -> None:
    n = 4000
    corruption = Denoising((2, 4), GaussianNoise((0.01, 1.0)))
    x = torch.zeros(n, 2, 4)
    measurement = corruption.draw(x, seeded(16))
    assert 0.01 <= measurement.std.min() < 0.02 and 0.5 < measurement.std.max() <= 1.0
    u = measurement.std.log()  # uniform between log 0.01 and log 1
    width = math.log(100)
    assert abs(u.mean() + width / 2) < 4 * width / math.sqrt(12 * n)
    chi2 = corruption.residual_chi2(measurement, x).mean()
    assert abs(chi2 - 1) < 4 * math.sqrt(2 / (8 * n))


def test_mask_removes_rho_of_the_pixels_for_all_channels() -> None:
    n = 2000
    mask = Mask((3, 8, 8), GaussianNoise(STD), rho=0.75).draw_operator(n, seeded(17))
    assert mask.shape == (n, 1, 8, 8)
    kept = mask.mean()
    assert abs(kept - 0.25) < 4 * math.sqrt(0.25 * 0.75 / (n * 64))


def test_blur_is_a_reflected_convolution() -> None:
    sigma, size = 1.3, 7
    blur = Blur((1, 9, 8), GaussianNoise(STD), sigma=sigma, kernel_size=size)
    x = torch.randn(2, 1, 9, 8, generator=seeded(18), dtype=torch.float64)
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    kernel = torch.exp(-(offset**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    window = pad(x, (3, 3, 3, 3), mode="reflect")
    expected = conv2d(window, (kernel[:, None] * kernel)[None, None])
    operator = torch.full((2, 1), sigma, dtype=torch.float64)
    torch.testing.assert_close(blur.apply(x, operator), expected)


def test_downsample_is_average_pooling() -> None:
    x = torch.randn(2, 3, 8, 6, generator=seeded(19))
    down = Downsample((3, 8, 6), GaussianNoise(STD), factor=2)
    torch.testing.assert_close(down.apply(x, torch.empty(2, 0)), avg_pool2d(x, 2))


def test_projection_has_unit_rows() -> None:
    a = Projection((5,), GaussianNoise(STD), rows=2).draw_operator(100, seeded(20))
    torch.testing.assert_close(a.norm(dim=-1), torch.ones(100, 2))


NOISE = GaussianNoise(STD)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Mask((1, 8, 8), NOISE, rho=1.0), "corruption.rho must be a number in [0, 1)"),
        (lambda: Mask((1, 8, 8), NOISE, rho=-0.1), "got -0.1"),
        (lambda: Mask((1, 8, 8), NOISE, rho="x"), "got 'x'"),  # type: ignore[arg-type]
        (lambda: Blur((1, 8, 8), NOISE, sigma=1.0, kernel_size=4), "must be odd"),
        (lambda: Blur((1, 8, 8), NOISE, sigma=1.0, kernel_size=17), "[1, 15]"),
        (lambda: Blur((1, 8, 8), NOISE, sigma=0.0, kernel_size=3), "corruption.sigma must be"),
        (lambda: Blur((8,), NOISE, sigma=1.0, kernel_size=3), "needs images"),
        (lambda: Downsample((1, 8, 9), NOISE, factor=2), "must divide every side"),
        (lambda: Projection((5,), NOISE, rows=6), "corruption.rows must be in [1, 5]"),
        (lambda: Projection((1, 8, 8), NOISE, rows=2), "needs vectors"),
        (lambda: GaussianNoise(0.0), "corruption.noise.std must be a positive number"),
        (lambda: GaussianNoise((0.2, 0.1)), "0 < low <= high"),
        (lambda: GaussianNoise(math.inf), "got inf"),
    ],
)
def test_bad_arguments(build: object, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        build()  # type: ignore[operator]
    assert sentence in str(error.value)
