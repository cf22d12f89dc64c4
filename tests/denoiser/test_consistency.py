"""Data consistency: what y measures under an operator without a spectrum, in the output."""

import pytest
import torch
from azula.noise import VESchedule
from exact import Zero
from torch import Tensor

from diffem.corruption import (
    Blur,
    DistortedChannel,
    GaussianNoise,
    LinearChannel,
    Mask,
    MultiCoil,
    PoissonNoise,
    Radon,
    Saturation,
    make_channel,
)
from diffem.corruption.composition import Composition
from diffem.corruption.operator import LinearOperator, expand
from diffem.denoiser import Conditioning, Denoiser
from diffem.denoiser.consistency import ITERATIONS, Consistency
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator

SHAPE = (1, 6, 6)
SCHEDULE = VESchedule(0.02, 20.0)
OPERATORS: dict[str, LinearOperator] = {
    "chain": Composition([Blur(SHAPE, sigma=0.7, kernel_size=3), Mask(SHAPE, rho=0.3)]),
    "multicoil": MultiCoil((2, 6, 6), coils=3, acceleration=2.0),
    "radon": Radon(SHAPE, angles=3),
}
CHANNELS: dict[str, LinearChannel] = {
    **{name: make_channel(a, GaussianNoise(0.5)) for name, a in OPERATORS.items()},
    "photons": make_channel(OPERATORS["chain"], PoissonNoise(photons=10.0)),
}


def matrix(channel: LinearChannel, operator: Tensor) -> Tensor:
    """Returns A of each of a batch of operators, (B, M, D)."""
    unit = torch.eye(torch.Size(channel.shape).numel(), dtype=operator.dtype)
    columns = [
        channel.apply(e.reshape(1, *channel.shape).expand(len(operator), -1, -1, -1), operator)
        for e in unit
    ]
    return torch.stack(columns, dim=-1).flatten(1, -2)


@pytest.mark.parametrize("name", CHANNELS)
def test_a_standard_normal_has_its_posterior_mean(name: str) -> None:
    channel, n = CHANNELS[name], 3
    size = (n, *channel.shape)
    x = torch.randn(size, generator=generator(0))
    measurement = channel.draw(x, generator(1))
    x_t, t = x + torch.randn(size, generator=generator(2)), torch.full((n,), 0.5)
    denoiser = Denoiser(Zero(), SCHEDULE)  # E[x | x_t] of x ~ N(0, I)
    found = denoiser(x_t, t, Conditioning()(channel, measurement)).mean

    operator = measurement.operator.double()
    a = matrix(channel, operator)
    var = channel.estimated_variance(measurement).double().expand_as(measurement.y)
    measured = channel.measured_mask(measurement.y.double(), operator)
    weight = (measured / var).flatten(1)
    alpha, sigma = (s.double() for s in SCHEDULE(t))
    precision = a.mT @ (weight[..., None] * a)
    precision += expand(1 + (alpha / sigma) ** 2, a) * torch.eye(a.shape[-1])
    known = expand(alpha / sigma**2, x_t) * x_t.double()
    known = known.flatten(1) + torch.einsum(
        "bmd,bm->bd", a, weight * measurement.y.double().flatten(1)
    )
    exact = torch.linalg.solve(precision, known).reshape(size)
    assert channel.spectrum(measurement.operator) is None
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=5e-3)


def test_more_iterations_come_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = make_channel(OPERATORS["radon"], GaussianNoise(0.05))
    x = torch.randn(4, *SHAPE, generator=generator(3))
    measurement = channel.draw(x, generator(4))
    given = Consistency.of(channel, measurement, channel.estimated_variance(measurement))
    found = {}
    for iterations in (0, 2, ITERATIONS, 200):
        monkeypatch.setattr("diffem.denoiser.consistency.ITERATIONS", iterations)
        corrected = given.correct(torch.zeros_like(x), torch.ones(()))
        found[iterations] = float(channel.residual_chi2(measurement, corrected).mean())
    assert found[0] > 10 * found[2] > 20 * found[ITERATIONS] > 20 * found[200]
    assert found[ITERATIONS] < 3


def test_withheld_measurements_leave_the_estimate_as_it_is() -> None:
    channel = CHANNELS["radon"]
    x = torch.randn(2, *SHAPE, generator=generator(5))
    condition = Conditioning()(channel, channel.draw(x, generator(6)))
    half = condition.masked(torch.tensor([1.0, 0.0]))
    x_t, t = torch.randn(2, *SHAPE, generator=generator(7)), torch.full((2,), 0.4)
    denoiser = Denoiser(Zero(), SCHEDULE)
    mixed, full, none = (denoiser(x_t, t, c).mean for c in (half, condition, None))
    torch.testing.assert_close(mixed[0], full[0])
    torch.testing.assert_close(mixed[1], none[1])
    assert (full[1] - none[1]).abs().max() > 1e-2


class HalfRead(Blur):
    """Blurs, and reads out the upper half alone; its adjoint is that of the blur."""

    def measured_mask(self, y: Tensor, operator: Tensor) -> Tensor:
        return (torch.arange(6)[:, None] < 3).to(y.dtype).expand_as(y)

    def spectrum(self, operator: Tensor) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize(
    "operator", [OPERATORS["chain"], HalfRead(SHAPE, sigma=0.7, kernel_size=3)]
)
def test_what_is_not_measured_tells_nothing(operator: LinearOperator) -> None:
    channel = make_channel(operator, GaussianNoise(0.5))
    x = torch.randn(2, *SHAPE, generator=generator(8))
    measurement = channel.draw(x, generator(9))
    missing = 1 - channel.measured_mask(measurement.y, measurement.operator)
    assert missing.any()
    other = measurement._replace(y=measurement.y + 100 * missing)
    one, two = (Conditioning()(channel, each).consistency for each in (measurement, other))
    assert one is not None and two is not None
    torch.testing.assert_close(two.correct(x, torch.ones(())), one.correct(x, torch.ones(())))


def test_gradients_are_those_of_the_iterations() -> None:
    channel = CHANNELS["chain"]
    x = torch.randn(2, *SHAPE, generator=generator(10)).double()
    measurement = channel.draw(x.float(), generator(11)).to(torch.float64)
    given = Consistency.of(channel, measurement, channel.estimated_variance(measurement))
    precision = torch.full((2, 1, 1, 1), 3.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: given.correct(x, precision), x.requires_grad_(), fast_mode=True
    )


@pytest.mark.parametrize("name", ["multicoil", "radon", "chain"])
def test_it_is_computed_in_full_precision(name: str) -> None:
    channel = CHANNELS[name]
    x = torch.randn(2, *channel.shape, generator=generator(12))
    measurement = channel.draw(x, generator(13))
    given = Consistency.of(channel, measurement, channel.estimated_variance(measurement))
    exact = given.correct(x, torch.ones(()))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(given.correct(x, torch.ones(())), exact, rtol=0, atol=1e-5)


def test_what_is_distorted_after_a_lens_is_left_to_the_network() -> None:
    lens = make_channel(Blur(SHAPE, sigma=0.3, kernel_size=3), GaussianNoise(0.05))
    channel = DistortedChannel(lens, [Saturation(low=-1.0, high=0.0)])
    given = channel.draw(torch.zeros(3, *SHAPE), generator(14))
    assert Conditioning()(channel, given).consistency is None
    with pytest.raises(UserError, match="fuse=true needs a channel that is lin"):
        Conditioning(fuse=True)(channel, given)


@pytest.mark.parametrize("std", [1e-12, 1e-6, 1e-4, 1e12])
@pytest.mark.parametrize("name", ["chain", "multicoil", "radon"])
def test_any_noise_is_finite_and_comes_no_farther_from_y(name: str, std: float) -> None:
    """At both ends of a schedule, and of `corruption.noise.std` on the scale of [-1, 1]."""
    size = (1, 24, 24)
    linear: dict[str, LinearOperator] = {
        "chain": Composition([Blur(size, sigma=0.7, kernel_size=3), Mask(size, rho=0.5)]),
        "multicoil": MultiCoil((2, 24, 24), coils=4, acceleration=3.0),
        "radon": Radon(size, angles=90),
    }
    channel = make_channel(linear[name], GaussianNoise(std))
    x = torch.rand(2, *channel.shape, generator=generator(15)) * 2 - 1
    measurement = channel.draw(x, generator(16))
    given = Consistency.of(channel, measurement, channel.estimated_variance(measurement))
    for sigma in (1e-3, 1.0, 1e2):
        noise = torch.randn(x.shape, generator=generator(17))
        estimate = (x + min(sigma, 1) * noise).requires_grad_()
        corrected = given.correct(estimate, torch.tensor(1 + sigma**-2))
        (gradient,) = torch.autograd.grad(corrected.square().sum(), estimate)
        before, after = (channel.residual_chi2(measurement, v) for v in (estimate, corrected))
        assert (after < (0.2 if std < 1 else 1.001) * before).all()
        assert gradient.abs().max() < 50  # that of ‖x‖² is 2 x
