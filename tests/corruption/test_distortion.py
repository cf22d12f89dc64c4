"""Distortions against independent computations, and the channels that they make."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from diffem.corruption import (
    JPEG,
    Blur,
    Composition,
    Denoising,
    DistortedChannel,
    Distortion,
    Gamma,
    GaussianNoise,
    Impulse,
    Mask,
    Measurement,
    Noise,
    PoissonNoise,
    Quantisation,
    Rician,
    Saturation,
    make_channel,
)
from diffem.data.scale import Scale
from diffem.runtime.errors import UserError

STD = 0.1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distorted(
    *distortions: Distortion, shape: tuple[int, ...] = (1, 8, 8), noise: Noise | None = None
) -> DistortedChannel:
    linear = make_channel(Denoising(shape), noise or GaussianNoise(STD))
    return DistortedChannel(linear, distortions)


CHANNELS = {
    "saturation": distorted(Saturation(low=-1.0, high=0.2)),
    "quantisation": distorted(Quantisation(levels=4)),
    "gamma": distorted(Gamma(gamma=(0.5, 2.0))),
    "JPEG": distorted(JPEG(quality=(5, 50))),
    "JPEG of colour": distorted(JPEG(quality=10), shape=(3, 8, 8)),
    "impulse": distorted(Impulse(fraction=(0.1, 0.5))),
    "Rician": distorted(Rician()),
    "two": distorted(Gamma(gamma=2.0), Quantisation(levels=8)),
    "mask, saturation": DistortedChannel(
        make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise((0.05, 0.2))),
        [Saturation(low=-0.5, high=0.5)],
    ),
    "blur and mask, JPEG": DistortedChannel(
        make_channel(
            Composition(
                [Blur((1, 8, 8), sigma=(0.5, 1.0), kernel_size=3), Mask((1, 8, 8), rho=0.3)]
            ),
            PoissonNoise(50.0),
        ),
        [JPEG(quality=30)],
    ),
}


@pytest.fixture(params=CHANNELS)
def channel(request: pytest.FixtureRequest) -> DistortedChannel:
    return CHANNELS[request.param]


def test_a_channel_draws_by_its_generator_alone_and_embeds_on_the_grid(
    channel: DistortedChannel,
) -> None:
    x = torch.randn(5, *channel.shape, generator=seeded(0)).clamp(-1, 1)
    torch.manual_seed(1)
    first = channel.draw(x, seeded(2))
    torch.manual_seed(3)
    second, other = channel.draw(x, seeded(2)), channel.draw(x, seeded(4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.y, other.y)
    embedding = channel.embed(first)
    assert embedding.shape[2:] == channel.shape[1:] and embedding.isfinite().all()
    torch.testing.assert_close(channel.lift(first), embedding[:, : channel.shape[0]])
    assert torch.equal(channel.assume(first).operator, first.operator)


def test_the_distortion_follows_the_noise_of_the_linear_channel(channel: DistortedChannel) -> None:
    """With the same generator the linear channel draws what is then distorted."""
    x = torch.randn(5, *channel.shape, generator=seeded(5)).clamp(-1, 1)
    gen = seeded(6)
    y, operator, noise = channel.linear.draw(x, gen)
    for distortion in channel.distortions:
        y = distortion.apply(y, distortion.draw(5, gen), noise, gen)
    measured = channel.linear.measured_mask(y, operator)
    assert torch.equal(channel.draw(x, seeded(6)).y, y * measured)


def value(distortion: Distortion, u: torch.Tensor, *parameters: float) -> torch.Tensor:
    phi = torch.tensor([parameters]).expand(len(u), -1)
    return distortion.apply(u, phi, torch.full((len(u), 1), STD), seeded(7))


def test_known_values() -> None:
    u = torch.tensor([[-1.5, -1.0, -0.4, 0.0, 0.4, 1.0, 2.0]])
    expected = torch.tensor([[-0.5, -0.5, -0.4, 0.0, 0.3, 0.3, 0.3]])
    assert torch.equal(value(Saturation(low=-0.5, high=0.3), u), expected)
    expected = torch.tensor([[-1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0]])
    assert torch.equal(value(Quantisation(levels=3), u), expected)
    expected = torch.tensor([[-1.0, -1.0, 2 * 0.3**2 - 1, -0.5, 2 * 0.7**2 - 1, 1.0, 3.5]])
    torch.testing.assert_close(value(Gamma(gamma=2.0), u, 2.0), expected)


UNDONE = {
    "saturation": Saturation(low=-0.5, high=0.3),
    "quantisation": Quantisation(levels=5),
    "impulse": Impulse(fraction=0.3),
    "gamma": Gamma(gamma=1.7),
}


@pytest.mark.parametrize("name", UNDONE)
def test_of_a_flat_law_what_is_undone_is_as_far_off_as_it_says(name: str) -> None:
    distortion, u = UNDONE[name], 2 * torch.rand(1, 100_000, generator=seeded(10)) - 1
    phi = distortion.draw(1, seeded(11))
    y = distortion.apply(u, phi, torch.full((1, 1), STD), seeded(12))
    undone = distortion.undo(y, torch.zeros_like(y), phi, torch.full((1, 1), STD))
    assert undone is not None
    mean, variance = undone
    known = variance == 0
    torch.testing.assert_close(mean[known], u[known], atol=1e-3, rtol=0)
    if not known.all():
        z = ((u - mean) / variance.sqrt())[~known]
        assert abs(z.square().mean() - 1) < 0.03
    assert known.all() == (name == "gamma") and known.any() == (name != "quantisation")


@pytest.mark.parametrize("bounds", [(0.1, 0.7), (12.3, 45.6), (0, 255)])
def test_impulses_are_found_in_the_units_of_a_file(bounds: tuple[float, float]) -> None:
    """Of a range that float32 rounds, black and white are off by its last bits on [-1, 1]."""
    scale = Scale(*map(float, bounds))
    y = scale.normalise(torch.tensor([*bounds, sum(bounds) / 2], dtype=torch.float32)[None])
    undone = Impulse(fraction=0.2).undo(y, torch.zeros_like(y), torch.tensor([[0.2]]), y)
    assert undone is not None
    assert (undone[1] > 0).tolist() == [[True, True, False]] and not undone[0][0, :2].any()


def test_gamma_carries_a_variance_through_its_slope() -> None:
    u, std = torch.tensor([[-0.6, 0.0, 0.9]]), 1e-3
    distortion, phi, level = Gamma(gamma=2.2), torch.tensor([[2.2]]), torch.full((1, 1), STD)
    y = distortion.apply(u, phi, level, seeded(0))
    undone = distortion.undo(y, torch.full_like(u, std**2), phi, level)
    further = distortion.undo(y + std, torch.zeros_like(u), phi, level)
    assert undone is not None and further is not None
    torch.testing.assert_close(undone[1].sqrt(), further[0] - u, rtol=0.01, atol=0)


def test_a_rician_modulus_loses_its_bias() -> None:
    """Where the signal is above the noise, and the spread that is said is that of the estimate."""
    u = torch.full((1, 200_000), 4 * STD - 1)  # an amplitude of 4 σ_y
    level = torch.full((1, 1), STD)
    y = Rician().apply(u, torch.empty(1, 0), level, seeded(13))
    undone = Rician().undo(y, torch.zeros_like(y), torch.empty(1, 0), level)
    assert undone is not None
    assert (y - u).mean() > 0.1 * STD and abs((undone[0] - u).mean()) < 0.03 * STD
    torch.testing.assert_close(undone[1].mean(), undone[0].var(), rtol=0.2, atol=0)


def test_undistorted_measurements_are_those_of_the_surrogate() -> None:
    """Where a pixel is clipped, its interval's middle and width; elsewhere y and its noise."""
    std = 0.1
    channel = DistortedChannel(
        make_channel(Mask((1, 1, 4), rho=0.5), GaussianNoise(std)),
        [Saturation(low=-1.0, high=0.4)],
    )
    y = torch.tensor([[[[0.1, 0.4, 0.0, 0.4]]]])
    seen = torch.tensor([[[[1.0, 1.0, 0.0, 1.0]]]])
    given = Measurement(y, seen.flatten(1), torch.full((1, 1), std))
    y, weights, level = channel.undistorted(given)
    assert channel.surrogate is not None
    expected = torch.tensor([0.1, 0.7, 0.0, 0.7])
    torch.testing.assert_close(
        channel.surrogate.lift(Measurement(y, weights, level))[0, 0, 0], expected
    )
    each = (level[0] / weights[0, 0, 0]) ** 2  # the variance of each pixel's noise
    wide = std**2 + 0.6**2 / 12
    torch.testing.assert_close(each[[0, 1, 3]], torch.tensor([std**2, wide, wide]))
    assert weights[0, 0, 0, 2] == 0


def test_the_surrogate_of_what_follows_a_lens_weighs_what_the_lens_returns() -> None:
    lens = Blur((1, 8, 8), sigma=0.8, kernel_size=3)
    channel = DistortedChannel(
        make_channel(lens, GaussianNoise(STD)), [Saturation(low=-1.0, high=0.0), Gamma(gamma=2.0)]
    )
    x = torch.randn(3, 1, 8, 8, generator=seeded(11)).clamp(-1, 1)
    given = channel.draw(x, seeded(12))
    measured, surrogate = channel.undistorted(given), channel.surrogate
    assert surrogate is not None and (surrogate.residual_chi2(measured, x) < 2).all()
    seen = surrogate.apply(x, measured.operator)
    weights = seen / lens.apply(x, given.operator[:, :1])
    clipped = given.y > 2 * 0.5**2 - 1 - 1e-4
    torch.testing.assert_close(weights[~clipped], torch.ones_like(weights[~clipped]))
    assert clipped.any() and weights[clipped].max() < 0.4


class Swapped(Denoising):
    """Exchanges the channels of a pixel: pixelwise, and no product with a mask."""

    def apply(self, x: torch.Tensor, operator: torch.Tensor) -> torch.Tensor:
        return x.flip(1)

    def adjoint(self, y: torch.Tensor, operator: torch.Tensor) -> torch.Tensor:
        return y.flip(1)


def test_what_mixes_the_channels_of_a_pixel_is_no_weighting() -> None:
    linear = make_channel(Swapped((2, 4, 4)), GaussianNoise(0.01))
    channel = DistortedChannel(linear, [Saturation(low=-1.0, high=0.0)])
    x = 2 * torch.rand(3, 2, 4, 4, generator=seeded(14)) - 1
    given = channel.draw(x, seeded(15))
    measured = channel.undistorted(given)
    assert channel.nearest_linear(given) is None and channel.surrogate is not None
    assert (channel.surrogate.residual_chi2(measured, x) < 2).all()


# The luminance table of JPEG's quality 50 (ITU-T T.81, Annex K).
LUMINANCE = """
16 11 10 16 24 40 51 61     12 12 14 19 26 58 60 55     14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62     18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""


def test_jpeg_rounds_the_cosines_of_every_block() -> None:
    u = torch.randn(1, 1, 16, 8, generator=seeded(8)).clamp(-1, 1)
    pixels = ((u[0, 0] + 1) * 127.5).round().numpy()
    step = np.array(LUMINANCE.split(), dtype=np.float64).reshape(8, 8) * 50 / 20  # of quality 20
    step = np.floor(step + 0.5).clip(1, 255)
    blocks = []
    for block in (pixels[:8], pixels[8:]):
        cosines = np.round(dctn(block - 128, norm="ortho") / step) * step
        blocks.append(np.asarray(idctn(cosines, norm="ortho")) + 128)
    found = (value(JPEG(quality=20), u, 20.0)[0, 0].numpy() + 1) * 127.5
    # libjpeg's transforms are of whole numbers: they differ by a grey value or two.
    assert np.abs(found - np.concatenate(blocks).clip(0, 255)).max() <= 2.5
    assert np.abs(found - pixels).max() > 10


def test_impulses_replace_the_stated_fraction_by_both_extremes() -> None:
    n = 200
    y = value(Impulse(fraction=0.3), torch.zeros(n, 1, 8, 8), 0.3)
    for extreme in (-1.0, 1.0):  # 4 standard errors of a frequency
        share = float((y == extreme).float().mean())
        assert abs(share - 0.15) < 4 * (0.15 * 0.85 / (n * 64)) ** 0.5


def test_rician_noise_has_its_second_moment() -> None:
    """E[M²] = I² + 2 σ², with M = (y + 1) / 2 and σ = σ_y / 2 (Gudbjartsson and Patz)."""
    n = 4000
    channel = distorted(Rician())
    x = torch.full((n, 1, 8, 8), -0.8)
    m = (channel.draw(x, seeded(9)).y + 1) / 2
    assert (m >= 0).all()
    second = m.double().square()
    error = 4 * float(second.std()) / (64 * n) ** 0.5
    assert abs(float(second.mean()) - (0.1**2 + 2 * (STD / 2) ** 2)) < error


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: Saturation(low=0.5, high=0.5),
            "corruption.low must be below corruption.high=0.5",
        ),
        (lambda: Quantisation(levels=1), "corruption.levels must be"),
        (lambda: JPEG(quality=0), "corruption.quality must be"),
        (
            lambda: distorted(JPEG(quality=5), shape=(2, 8, 8)),
            "needs grey or colour images",
        ),
        (
            lambda: distorted(Rician(), noise=PoissonNoise(9.0)),
            "needs Gaussian noise in each part",
        ),
        (
            lambda: DistortedChannel(
                make_channel(Denoising((1, 8, 8)), GaussianNoise(STD), learn=["noise"]),
                [Saturation(low=-1.0, high=0.0)],
            ),
            "choose corruption.learn=[]",
        ),
    ],
)
def test_bad_arguments(build: object, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        build()  # type: ignore[operator]
    assert sentence in str(error.value)
