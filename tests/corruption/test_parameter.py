"""Channel parameters: known, drawn from a range, learned; and what a channel assumes."""

import math

import pytest
import torch

from diffem.corruption import (
    Blur,
    Denoising,
    GaussianNoise,
    LinearGaussianChannel,
    Mask,
    Measurement,
    make_channel,
)
from diffem.corruption.parameter import ChannelParameter
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator

SHAPE = (1, 8, 8)


def blur(std: float, sigma: object, learn: tuple[str, ...] = ()) -> LinearGaussianChannel:
    return make_channel(Blur(SHAPE, sigma=sigma, kernel_size=5), GaussianNoise(std), learn=learn)  # type: ignore[arg-type]


def drawn(channel: LinearGaussianChannel) -> Measurement:
    return channel.draw(torch.randn(6, *SHAPE, generator=generator(0)), generator(1))


def test_a_range_is_drawn_log_uniformly() -> None:
    n = 20000
    log = ChannelParameter.of("x", (0.1, 10.0)).draw(n, generator(2)).log10()
    assert log.min() >= -1 and log.max() <= 1
    # Monte Carlo: uniform on [-1, 1] has variance 1/3.
    assert abs(log.mean()) < 4 * math.sqrt(1 / 3 / n)
    assert abs(log.var() - 1 / 3) < 4 * math.sqrt(4 / 45 / n)


def test_what_is_assumed_is_what_is_known() -> None:
    measurement = drawn(blur(0.05, 1.0))
    same = blur(0.05, 1.0).assume(measurement)
    assert all(torch.equal(a, b) for a, b in zip(measurement, same, strict=True))
    other = blur(0.2, 2.0).assume(measurement)
    assert torch.equal(other.y, measurement.y)
    assert (other.noise == 0.2).all() and (other.operator == 2.0).all()


def test_a_range_keeps_each_sample_s_own() -> None:
    measurement = drawn(blur(0.05, (0.5, 2.0)))
    kept = blur(0.05, (0.1, 5.0)).assume(measurement)
    assert torch.equal(kept.operator, measurement.operator)
    assert len(measurement.operator.unique()) == 6


def test_masks_are_never_assumed_away() -> None:
    mask = make_channel(Mask(SHAPE, rho=0.5), GaussianNoise(0.05))
    measurement = mask.draw(torch.randn(3, *SHAPE), generator(3))
    other = make_channel(Mask(SHAPE, rho=0.9), GaussianNoise(0.1)).assume(measurement)
    assert torch.equal(other.operator, measurement.operator) and (other.noise == 0.1).all()


def test_a_learned_parameter_is_assumed_and_drawn_about() -> None:
    channel = blur(0.05, 2.0, learn=("sigma",))
    learned = channel.with_estimates({"sigma": 1.2}, widen=1.5)
    assert (learned.assume(drawn(blur(0.05, 1.0))).operator == torch.tensor(1.2)).all()
    widths = learned.forward_operator.draw(1000, generator(4))
    assert 0.8 <= widths.min() < 0.85 and 1.7 < widths.max() <= 1.8
    assert channel.known("sigma") == 2.0  # replaced, never changed in place


def test_square_error_is_the_noise_s_variance_at_the_truth() -> None:
    x, std = torch.randn(200, *SHAPE, generator=generator(5)), 0.3
    channel = make_channel(Mask(SHAPE, rho=0.5), GaussianNoise(std))
    error = channel.square_error(channel.draw(x, generator(6)), x) / std**2
    # Monte Carlo: about 200 · 32 measured pixels, each χ² of variance 2.
    assert abs(error - 1) < 4.5 * math.sqrt(2 / (200 * 32))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: make_channel(Denoising(SHAPE), GaussianNoise(0.1), learn=["sigma"]),
            r"corruption\.learn can name noise of this corruption, got 'sigma'",
        ),
        (
            lambda: blur(0.1, 1.0, learn=("sigma", "sigma")),
            r"corruption\.learn names sigma twice; name it once",
        ),
        (
            lambda: blur(0.1, 1.0, learn=("width",)),
            r"corruption\.learn can name sigma, noise of this corruption, got 'width'",
        ),
        (
            lambda: make_channel(Denoising(SHAPE), GaussianNoise(0.1), learn=[["noise"]]),  # type: ignore
            r"corruption\.learn can name noise of this corruption, got \['noise'\]",
        ),
        (
            lambda: blur(0.1, [0.5, 2.0], learn=("sigma",)),
            r"corruption\.sigma must be one number, the start, where corruption\.learn names it",
        ),
    ],
)
def test_mistakes(make: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()  # type: ignore[operator]
