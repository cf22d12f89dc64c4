"""Law 8: every corruption keeps its law."""

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d, pad

from diffem.corruption import (
    Blur,
    Denoising,
    Downsample,
    Fourier,
    GaussianNoise,
    LinearGaussianChannel,
    Mask,
    Mosaic,
    MotionBlur,
    MultiCoil,
    PointSpread,
    Projection,
    Radon,
    Weighting,
    make_channel,
)
from diffem.runtime.errors import UserError

STD = 0.1
KERNEL = [[1.0, 2.0, 0.0], [0.0, 4.0, 1.0], [0.0, 1.0, 0.5]]
OPERATORS = {
    "mask": Mask((3, 8, 6), rho=0.4),
    "mask of signals": Mask((2, 16), rho=0.4),
    "mask of vectors": Mask((7,), rho=0.4),
    "blur": Blur((3, 8, 6), sigma=(0.5, 2.0), kernel_size=7),
    "blur of signals": Blur((2, 16), sigma=1.0, kernel_size=5),
    "downsample": Downsample((3, 8, 6), factor=2),
    "denoising": Denoising((3, 8, 6)),
    "projection": Projection((5,), rows=2),
    "super-resolution": Blur((3, 8, 6), sigma=(0.5, 2.0), kernel_size=7, factor=2),
    "point spread": PointSpread((3, 8, 7), kernel=KERNEL),
    "point spread of signals": PointSpread((2, 16), kernel=[1.0, 3.0, 0.5]),
    "motion blur": MotionBlur((3, 8, 7), length=(1.5, 6.0), angle=(1e-3, 180.0)),
    "Fourier": Fourier((1, 8, 7), acceleration=2.0, centre=0.2),
    "Fourier of complex images": Fourier((2, 6, 8), acceleration=2.0, centre=0.2),
    "multi-coil": MultiCoil((2, 6, 8), coils=3, acceleration=2.0, centre=0.2),
    "multi-coil of real images": MultiCoil((1, 8, 7), coils=2, acceleration=2.0, centre=0.2),
    "mosaic": Mosaic((3, 8, 6)),
    "radon": Radon((2, 6, 5), angles=3),
    "radon at given angles": Radon((1, 6, 5), angles=[0.0, 17.0, 90.0]),
    "weighting": Weighting((3, 8, 6), ratio=(1.0, 10.0)),
}
NO_SPECTRUM = (MultiCoil, Radon)  # no basis is at hand in which they are diagonal


@pytest.fixture(params=OPERATORS)
def channel(request: pytest.FixtureRequest) -> LinearGaussianChannel:
    return make_channel(OPERATORS[request.param], GaussianNoise(STD))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_adjoint(channel: LinearGaussianChannel) -> None:
    gen = seeded(0)
    x = torch.randn(4, *channel.shape, generator=gen, dtype=torch.float64)
    operator = channel.forward_operator.draw(4, gen)
    ax = channel.apply(x, operator)
    v = torch.randn(ax.shape, generator=gen, dtype=torch.float64)
    left = (ax * v).flatten(1).sum(dim=1)
    right = (x * channel.adjoint(v, operator)).flatten(1).sum(dim=1)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_noise_has_the_stated_moments(channel: LinearGaussianChannel) -> None:
    n = 4000
    x = torch.randn(n, *channel.shape, generator=seeded(1))
    measurement = channel.draw(x, seeded(2))
    y, operator, std = measurement
    measured = channel.measured_mask(y, operator).bool()
    noise = ((y - channel.apply(x, operator)) / STD)[measured]
    bound = 4 / math.sqrt(noise.numel())  # Monte Carlo: 4 standard errors
    assert abs(noise.mean()) < bound
    assert abs(noise.var() - 1) < bound * math.sqrt(2)  # the variance of a squared normal is 2
    assert (y[~measured] == 0).all()
    assert (std == STD).all()


def test_chi2_of_the_truth_is_one(channel: LinearGaussianChannel) -> None:
    n = 4000
    x = torch.randn(n, *channel.shape, generator=seeded(3))
    measurement = channel.draw(x, seeded(4))
    measured = channel.measured_mask(measurement.y, measurement.operator).flatten(1).sum(dim=1)
    chi2 = channel.residual_chi2(measurement, x)[measured > 0]
    # A mean of squared normals over M entries has variance 2 / M.
    bound = 4 * math.sqrt(float((2 / measured[measured > 0]).mean()) / len(chi2))
    assert abs(chi2.mean() - 1) < bound


def test_log_likelihood_is_the_normal_density(channel: LinearGaussianChannel) -> None:
    x = torch.randn(5, *channel.shape, generator=seeded(5), dtype=torch.float64)
    measurement = channel.draw(x.float(), seeded(6)).to(torch.float64)
    y, operator, _ = measurement
    density = torch.distributions.Normal(channel.apply(x, operator), STD).log_prob(y)
    expected = (density * channel.measured_mask(y, operator)).flatten(1).sum(dim=1)
    torch.testing.assert_close(
        channel.log_likelihood(measurement, x), expected, rtol=1e-6, atol=1e-6
    )


def test_drawing_again_is_independent(channel: LinearGaussianChannel) -> None:
    n = 4000
    x = torch.zeros(n, *channel.shape)
    gen = seeded(7)
    first, second = channel.draw(x, gen), channel.draw(x, gen)
    for a, b in zip(first, second, strict=True):
        a, b = a.reshape(n, -1), b.reshape(n, -1)
        if a.shape[1] == 0 or a.std() == 0:
            continue  # an operator without parameters, a fixed noise level
        centred = (a - a.mean(dim=0)) * (b - b.mean(dim=0))
        # Monte Carlo: products of independent values average to 0 within 4.5 standard errors (of
        # up to 144 entries, one in 150,000 is further off).
        error = a.std(dim=0) * b.std(dim=0) / math.sqrt(n)
        assert (centred.mean(dim=0).abs() < 4.5 * error + 1e-9).all()


def test_draw_depends_on_its_generator_alone(channel: LinearGaussianChannel) -> None:
    x = torch.randn(3, *channel.shape, generator=seeded(8))
    torch.manual_seed(1)
    first = channel.draw(x, seeded(9))
    torch.manual_seed(2)
    second = channel.draw(x, seeded(9))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autocast_changes_nothing(channel: LinearGaussianChannel) -> None:
    x = torch.randn(3, *channel.shape, generator=seeded(10))
    exact = channel.draw(x, seeded(11))
    with torch.autocast("cpu", torch.bfloat16):
        cast = channel.draw(x, seeded(11))
        embedding = channel.embed(cast)
        chi2 = channel.residual_chi2(cast, x)
        adjoint = channel.adjoint(cast.y, cast.operator)
        spectrum = channel.spectrum(cast.operator)
        coefficients = x if spectrum is None else spectrum.analyse(x)
    exact_spectrum = channel.spectrum(exact.operator)
    assert (exact_spectrum is None) == isinstance(channel.forward_operator, NO_SPECTRUM)
    if exact_spectrum is not None:
        assert torch.equal(coefficients, exact_spectrum.analyse(x))
    assert torch.equal(adjoint, channel.adjoint(exact.y, exact.operator))
    assert all(torch.equal(a, b) for a, b in zip(exact, cast, strict=True))
    assert torch.equal(embedding, channel.embed(exact))
    assert torch.equal(chi2, channel.residual_chi2(exact, x))


def test_embedding_is_on_the_grid_and_holds_the_noise_level(
    channel: LinearGaussianChannel,
) -> None:
    x = torch.randn(3, *channel.shape, generator=seeded(12))
    embedding = channel.embed(channel.draw(x, seeded(13)))
    assert embedding.shape[2:] == channel.shape[1:]
    torch.testing.assert_close(embedding[:, -1], torch.full_like(embedding[:, -1], STD))


def test_spectrum_is_that_of_the_operator(channel: LinearGaussianChannel) -> None:
    """AᵀA x = V diag(s²) Vᵀ x, and V is orthonormal."""
    gen = seeded(14)
    x = torch.randn(4, *channel.shape, generator=gen, dtype=torch.float64)
    operator = channel.forward_operator.draw(4, gen).double()
    spectrum = channel.spectrum(operator)
    assert (spectrum is None) == isinstance(channel.forward_operator, NO_SPECTRUM)
    if spectrum is None:
        return
    expected = channel.adjoint(channel.apply(x, operator), operator)
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
    channel = make_channel(Denoising((2, 4)), GaussianNoise((0.01, 1.0)))
    x = torch.zeros(n, 2, 4)
    measurement = channel.draw(x, seeded(16))
    assert 0.01 <= measurement.noise.min() < 0.02 and 0.5 < measurement.noise.max() <= 1.0
    u = measurement.noise.log()  # uniform between log 0.01 and log 1
    width = math.log(100)
    assert abs(u.mean() + width / 2) < 4 * width / math.sqrt(12 * n)
    chi2 = channel.residual_chi2(measurement, x).mean()
    assert abs(chi2 - 1) < 4 * math.sqrt(2 / (8 * n))


def test_mask_removes_rho_of_the_pixels_for_all_channels() -> None:
    n = 2000
    mask = make_channel(Mask((3, 8, 8), rho=0.75), GaussianNoise(STD)).forward_operator.draw(
        n, seeded(17)
    )
    assert mask.shape == (n, 1, 8, 8)
    kept = mask.mean()
    assert abs(kept - 0.25) < 4 * math.sqrt(0.25 * 0.75 / (n * 64))


def test_blur_is_a_reflected_convolution() -> None:
    sigma, size = 1.3, 7
    blur = make_channel(Blur((1, 9, 8), sigma=sigma, kernel_size=size), GaussianNoise(STD))
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
    down = make_channel(Downsample((3, 8, 6), factor=2), GaussianNoise(STD))
    torch.testing.assert_close(down.apply(x, torch.empty(2, 0)), avg_pool2d(x, 2))


def test_projection_has_unit_rows() -> None:
    a = make_channel(Projection((5,), rows=2), GaussianNoise(STD)).forward_operator.draw(
        100, seeded(20)
    )
    torch.testing.assert_close(a.norm(dim=-1), torch.ones(100, 2))


NOISE = GaussianNoise(STD)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: make_channel(Mask((1, 8, 8), rho=1.0), NOISE),
            "corruption.rho must be a number in [0, 1)",
        ),
        (lambda: make_channel(Mask((1, 8, 8), rho=-0.1), NOISE), "got -0.1"),
        (lambda: make_channel(Mask((1, 8, 8), rho="x"), NOISE), "got 'x'"),  # type: ignore[arg-type]
        (lambda: make_channel(Blur((1, 8, 8), sigma=1.0, kernel_size=4), NOISE), "must be odd"),
        (lambda: make_channel(Blur((1, 8, 8), sigma=1.0, kernel_size=17), NOISE), "[1, 15]"),
        (
            lambda: make_channel(Blur((1, 8, 8), sigma=0.0, kernel_size=3), NOISE),
            "corruption.sigma must be",
        ),
        (lambda: make_channel(Blur((8,), sigma=1.0, kernel_size=3), NOISE), "needs images"),
        (lambda: make_channel(Downsample((1, 8, 9), factor=2), NOISE), "must divide every side"),
        (
            lambda: make_channel(Projection((5,), rows=6), NOISE),
            "corruption.rows must be in [1, 5]",
        ),
        (lambda: make_channel(Projection((1, 8, 8), rows=2), NOISE), "needs vectors"),
        (lambda: GaussianNoise(0.0), "corruption.noise.std must be a positive number"),
        (lambda: GaussianNoise((0.2, 0.1)), "0 < low <= high"),
        (lambda: GaussianNoise(math.inf), "got inf"),
    ],
)
def test_bad_arguments(build: object, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        build()  # type: ignore[operator]
    assert sentence in str(error.value)
