"""What round 0 is drawn from, and that a fit that breaks down numerically is one sentence."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from diffem.corruption import (
    Channel,
    Denoising,
    DistortedChannel,
    Distortion,
    Fourier,
    Gamma,
    GaussianNoise,
    Mask,
    Saturation,
    make_channel,
)
from diffem.data import Digits
from diffem.data.measurements import simulate_measurements
from diffem.em.init import Mixture
from diffem.runtime.errors import UserError
from diffem.runtime.rng import seeded


def test_noise_that_is_too_weak_for_a_mixture() -> None:
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(1e-12))
    x = Digits([1, 8, 8], train=100).load().train
    data = SimpleNamespace(measurements=simulate_measurements(x, channel, seed=0, split="train"))
    module = SimpleNamespace(seed=0, device=torch.device("cpu"))
    init = Mixture(10, rank=64, iterations=5, samples=1000, shrinkage=10.0)
    with pytest.raises(UserError, match=r"the noise is too weak for float32; .* init=gaussian"):
        init.prepare(cast(Any, module), cast(Any, data), cast(Any, None))


def round_0(channel: Channel, x: Tensor) -> Tensor:
    """Draws round 0 from measurements of x, (N, *shape)."""
    measurements = simulate_measurements(x, channel, seed=0, split="train")
    data = SimpleNamespace(measurements=measurements)
    module = SimpleNamespace(seed=0, device=torch.device("cpu"))
    init = Mixture(2, rank=8, iterations=3, samples=1000, shrinkage=10.0)
    posterior = init.prepare(cast(Any, module), cast(Any, data), cast(Any, None))
    with seeded("round 0"):
        return posterior.draw(measurements.select(slice(None)))


def test_a_detector_that_never_saturates_changes_nothing() -> None:
    linear = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.1))
    wide = DistortedChannel(linear, [Saturation(low=-100.0, high=100.0)])
    x = Digits([1, 8, 8], train=60).load().train
    torch.testing.assert_close(round_0(wide, x), round_0(linear, x), atol=1e-3, rtol=0)


class SaturationAlone(Saturation):
    """One of which round 0 is not told what it does."""

    undo = Distortion.undo


class GammaAlone(Gamma):
    """One of which round 0 is not told what it does."""

    undo = Distortion.undo


@pytest.mark.parametrize(
    ("known", "unknown", "decibels"),
    [
        (Saturation(low=-1.0, high=0.0), SaturationAlone(low=-1.0, high=0.0), 3.0),
        (Gamma(gamma=2.2), GammaAlone(gamma=2.2), 5.0),
    ],
)
def test_round_0_undoes_a_distortion(
    known: Distortion, unknown: Distortion, decibels: float
) -> None:
    linear = make_channel(Denoising((1, 8, 8)), GaussianNoise(0.1))
    x = Digits([1, 8, 8], train=200).load().train
    errors = [
        (round_0(DistortedChannel(linear, [each]), x) - x).square().mean()
        for each in (unknown, known)
    ]
    assert 10 * (errors[0] / errors[1]).log10() > decibels


def test_round_0_of_a_channel_in_units_of_its_own_is_not_fitted() -> None:
    linear = make_channel(Fourier((1, 8, 8), acceleration=1.0), GaussianNoise(0.1))
    given = DistortedChannel(linear, [Saturation(low=-1.0, high=0.0)])
    assert given.surrogate is None and not Mixture.fits(given)
    assert linear.surrogate is linear and Mixture.fits(linear)
