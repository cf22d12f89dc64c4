"""Runs that stay in the images' range: `sampler.bounds` and `method=reflected`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from azula.noise import VESchedule
from azula.sample import DDIMSampler
from exact import Zero
from small_run import ROUNDS, SIZE, SmallRun
from test_resume import Killed, dying

from diffem.corruption import Denoising, GaussianNoise, make_channel
from diffem.data.measurements import MeasurementSet
from diffem.denoiser import Conditioning, Denoiser
from diffem.denoiser.reflected import fold, reflect
from diffem.em.init import Confined, ConfinedPosterior, Gaussian
from diffem.em.objective import Reflected as ReflectedObjective
from diffem.posterior import Conditional, Posterior, Reflected, ReflectedSampler
from diffem.posterior.bounded import Bounds, bounded
from diffem.runtime.rng import generator, seeded
from diffem.storage.reconstructions import Batch

UNFUSED = Conditioning(fuse=False)
BOUNDS = Bounds(-1.0, 1.0)
Confine = Callable[[torch.Tensor], torch.Tensor]


def with_bounds(path: Path) -> tuple[SmallRun, Confine]:
    sampler = partial(bounded(DDIMSampler, BOUNDS), steps=4)
    run = SmallRun(path)
    run.posterior = partial(Conditional, sampler=sampler, condition=Conditioning())
    return run, BOUNDS.clamp


def reflected(path: Path) -> tuple[SmallRun, Confine]:
    sampler = partial(ReflectedSampler, steps=4)
    objective = ReflectedObjective(condition=UNFUSED, p_uncond=0.0, fresh=True)
    rival = partial(Reflected, sampler=sampler, condition=UNFUSED)
    return SmallRun(path, objective=objective, rival=rival), fold


MAKE = {"bounds": with_bounds, "reflected": reflected}
Make = Callable[[Path], tuple[SmallRun, Confine]]


def fitted(make: Make, path: Path) -> SmallRun:
    run, confine = make(path)
    return run.fit(Confined(Gaussian(rank=64, iterations=2, samples=SIZE), confine))


@pytest.mark.parametrize("name", MAKE)
def test_no_pixel_of_any_round_is_outside_and_a_kill_changes_nothing(
    name: str, tmp_path: Path
) -> None:
    run = fitted(MAKE[name], tmp_path / "whole")
    for k in range(ROUNDS + 1):
        x = run.store.open(k).__getitems__(range(SIZE)).x
        assert x.abs().max() <= 1
    first, confine = MAKE[name](tmp_path / "r")
    init = Confined(Gaussian(rank=64, iterations=2, samples=SIZE), confine)
    with pytest.raises(Killed):
        dying(first, first.store, "write", 7).fit(init)  # the third chunk of E-step 1
    resumed = fitted(MAKE[name], tmp_path / "r")
    assert resumed.module.weights_hash() == run.module.weights_hash()
    digests = [[r.store.digest(k) for k in range(ROUNDS + 1)] for r in (resumed, run)]
    assert digests[0] == digests[1]


def test_an_init_is_confined_and_else_as_it_was(tmp_path: Path) -> None:
    free = SmallRun(tmp_path / "free", rounds=1).fit()
    held = fitted(with_bounds, tmp_path / "held")
    before, after = (r.store.open(0).__getitems__(range(SIZE)).x for r in (free, held))
    assert before.abs().max() > 1 and torch.equal(BOUNDS.clamp(before), after)
    posterior = held.rounds[0].posterior
    assert isinstance(posterior, ConfinedPosterior)
    for each in (posterior, posterior.uncounted(), posterior.under(held.measurements.channel)):
        assert isinstance(each, Posterior)
        x = each.draw(held.measurements.select(slice(8)))
        assert x.abs().max() <= 1


@pytest.mark.parametrize("prior", [False, True])
def test_a_reflected_denoiser_learns_the_mean_of_folded_images(prior: bool) -> None:
    """The loss is w (d(x_t) - m)² of the x_t and m that `reflect` draws, w = 1/σ² + 1."""
    schedule = VESchedule(0.02, 5.0)
    channel = make_channel(Denoising((1, 4, 4)), GaussianNoise(0.3))
    x = torch.rand(32, 1, 4, 4, generator=generator(0)) * 2 - 1
    measurements = MeasurementSet(channel.draw(x, generator(1)), channel, x)
    objective = ReflectedObjective(condition=UNFUSED, p_uncond=0.0, fresh=True)
    chosen = objective.prior() if prior else objective
    t = torch.linspace(0.05, 0.95, 32)
    batch = Batch(x, 0, torch.arange(32))
    with seeded(2):
        loss = chosen.loss(
            Denoiser(Zero(), schedule), batch, t, measurements=measurements, key=(0, "m", 0, 0)
        )
    with seeded(2):
        x_t, m = reflect(schedule, x, t)
    assert x_t.abs().max() <= 1
    precision = schedule(t)[1][:, None, None, None] ** -2
    error = x_t * precision / (precision + 1) - m  # of the exact denoiser of a standard normal
    torch.testing.assert_close(loss, ((precision + 1) * error**2).mean())
