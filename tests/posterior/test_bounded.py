"""Samplers with bounds: nothing is outside, and within them nothing changes."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from azula.noise import VESchedule
from azula.sample import DDPMSampler, HeunSampler, Sampler
from exact import Zero
from torch import Tensor

from diffem.corruption import Blur, GaussianNoise, Mask, Measurement, make_channel
from diffem.denoiser import Conditioning, Denoiser
from diffem.posterior import (
    DPS,
    MMPS,
    Conditional,
    DenoiserPosterior,
    DiffPIR,
    Isotropic,
    PiGDM,
    Prior,
    SamplerFactory,
    SDESampler,
    SplitGibbs,
    Start,
)
from diffem.posterior.bounded import Bounds, bounded
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded

SCHEDULE = VESchedule(0.02, 20.0)
BOUNDS = Bounds(-0.5, 0.7)
SHAPE = (1, 4, 4)
CHANNEL = make_channel(Mask(SHAPE, rho=0.5), GaussianNoise(0.1))
BLUR = make_channel(Blur(SHAPE, sigma=0.6, kernel_size=3), GaussianNoise(0.1))
METHODS: dict[str, Callable[[Denoiser, SamplerFactory], DenoiserPosterior]] = {
    "diffem": lambda d, s: Conditional(d, CHANNEL, sampler=s, condition=Conditioning()),
    "not fused": lambda d, s: Conditional(
        d, CHANNEL, sampler=s, condition=Conditioning(fuse=False)
    ),
    "mmps": lambda d, s: MMPS(d, BLUR, sampler=s, solver="gmres", iterations=2),
    "diffpir": lambda d, s: DiffPIR(d, BLUR, sampler=s, lmbda=1.0, iterations=2),
    "pigdm": lambda d, s: PiGDM(d, BLUR, sampler=s, covariance=Isotropic()),
    "dps": lambda d, s: DPS(d, BLUR, sampler=s, zeta=1.0),
    "gibbs": lambda d, s: SplitGibbs(d, BLUR, sampler=s, coupling=(3.0, 0.02), sweeps=2),
}


def measurement(posterior: DenoiserPosterior) -> Measurement:
    x = torch.randn(32, *SHAPE, generator=generator(0))
    return posterior.channel.draw(x, generator(1))


def drawn(method: str, sampler: type[Sampler]) -> Tensor:
    posterior = METHODS[method](Denoiser(Zero(), SCHEDULE), partial(sampler, steps=6))
    with seeded(2):
        return posterior.draw(measurement(posterior))


@pytest.mark.parametrize("method", METHODS)
def test_no_entry_is_outside(method: str) -> None:
    """Of a standard normal prior, whose posterior leaves the bounds by far."""
    free, held = (drawn(method, s) for s in (DDPMSampler, bounded(DDPMSampler, BOUNDS)))
    assert free.min() < BOUNDS.low - 0.2 and free.max() > BOUNDS.high + 0.2
    assert held.min() == pytest.approx(BOUNDS.low) and held.max() == pytest.approx(BOUNDS.high)
    assert held.min() >= torch.tensor(BOUNDS.low) and held.max() <= torch.tensor(BOUNDS.high)
    # Gibbs sampling goes on from samples; elsewhere no step before the last one knows of bounds.
    assert torch.equal(held, BOUNDS.clamp(free)) == (method != "gibbs")


@pytest.mark.parametrize("method", METHODS)
def test_wide_bounds_change_no_byte(method: str) -> None:
    wide = bounded(DDPMSampler, Bounds(-1e3, 1e3))
    assert torch.equal(drawn(method, wide), drawn(method, DDPMSampler))


@pytest.mark.parametrize("sampler", [DDPMSampler, HeunSampler, SDESampler])
def test_every_sampler_is_bounded(sampler: type[Sampler]) -> None:
    held = drawn("diffem", bounded(sampler, BOUNDS))
    assert held.min() >= torch.tensor(BOUNDS.low) and held.max() <= torch.tensor(BOUNDS.high)
    wide = bounded(sampler, Bounds(-1e3, 1e3))
    # Of sampler=sde also its last step, which asks the denoiser for the fused noise.
    assert torch.equal(drawn("diffem", wide), drawn("diffem", sampler))


def test_redraws_and_priors_are_bounded() -> None:
    sampler = partial(bounded(SDESampler, BOUNDS), steps=6)
    posterior = METHODS["diffem"](Denoiser(Zero(), SCHEDULE), sampler)
    with seeded(3):
        x = 3 * torch.randn(32, *SHAPE)
        again = posterior.redraw(measurement(posterior), Start(x, 0.6))
        prior = Prior(Denoiser(Zero(), SCHEDULE), SHAPE, sampler=sampler)
        alone = prior.sample(32)
    for each in (again, alone):
        assert each.min() >= torch.tensor(BOUNDS.low) and each.max() <= torch.tensor(BOUNDS.high)


def test_a_clamped_sample_is_nearer_to_the_true_image() -> None:
    """Whatever it is: clamping is the projection onto what holds every image."""
    true = torch.rand(1000, generator=generator(5)) * 1.2 - 0.5
    estimate = true + torch.randn(1000, generator=generator(6))
    assert ((BOUNDS.clamp(estimate) - true).abs() <= (estimate - true).abs() + 1e-7).all()


@pytest.mark.parametrize("value", [0.5, [0.5], [1, -1], [0, 0], [0, 1, 2], ["a", "b"], [0, None]])
def test_what_are_no_bounds_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"^sampler\.bounds") as error:
        Bounds.of(value)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^sampler\.bounds"):
        Bounds.of([-math.inf, math.inf])
