"""A fit that breaks down numerically is one sentence."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from diffem.corruption import GaussianNoise, Mask, make_channel
from diffem.data import Digits
from diffem.data.measurements import simulate_measurements
from diffem.em.init import Mixture
from diffem.runtime.errors import UserError


def test_noise_that_is_too_weak_for_a_mixture() -> None:
    channel = make_channel(Mask((1, 8, 8), rho=0.5), GaussianNoise(1e-12))
    x = Digits([1, 8, 8], train=100).load().train
    data = SimpleNamespace(measurements=simulate_measurements(x, channel, seed=0, split="train"))
    module = SimpleNamespace(seed=0, device=torch.device("cpu"))
    init = Mixture(10, rank=64, iterations=5, samples=1000, shrinkage=10.0)
    with pytest.raises(UserError, match=r"the noise is too weak for float32; .* init=gaussian"):
        init.prepare(cast(Any, module), cast(Any, data), cast(Any, None))
