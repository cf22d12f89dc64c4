"""A fit that breaks down numerically is one sentence."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from diffem.corruption import (
    DistortedChannel,
    Fourier,
    GaussianNoise,
    Magnitude,
    Mask,
    Saturation,
    make_channel,
)
from diffem.data import Digits
from diffem.data.measurements import simulate_measurements
from diffem.em.init import Mixture, linear_part
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


def test_round_0_leaves_distortions_out_of_account() -> None:
    """Under a detector that never saturates it is that of the linear channel, bit for bit."""
    linear = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(0.1))
    wide = DistortedChannel(linear, [Saturation(low=-100.0, high=100.0)])
    x = Digits([1, 8, 8], train=60).load().train
    drawn = []
    for channel in (linear, wide):
        measurements = simulate_measurements(x, channel, seed=0, split="train")
        data = SimpleNamespace(measurements=measurements)
        module = SimpleNamespace(seed=0, device=torch.device("cpu"))
        init = Mixture(2, rank=8, iterations=3, samples=1000, shrinkage=10.0)
        posterior = init.prepare(cast(Any, module), cast(Any, data), cast(Any, None))
        with seeded("round 0"):
            drawn.append(posterior.draw(measurements.select(slice(None))))
    assert torch.equal(*drawn)


def test_round_0_of_a_channel_in_units_of_its_own_is_not_fitted() -> None:
    linear = make_channel(Fourier((1, 8, 8), acceleration=1.0), GaussianNoise(0.1))
    assert linear_part(DistortedChannel(linear, [Magnitude()])) is None
    assert linear_part(linear) is linear
