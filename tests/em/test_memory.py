"""Memory: what is put into batches, and what is kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from azula.noise import VESchedule
from small_run import SIZE, SmallRun
from test_resume import Killed, dying
from torch import Tensor

from diffem.corruption import GaussianNoise, Mask, make_channel
from diffem.data.measurements import MeasurementSet
from diffem.denoiser import Conditioning, Denoiser
from diffem.em import Memory, Replay
from diffem.em.memory import pooled
from diffem.em.objective import Recorrupted
from diffem.network import UNet
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded
from diffem.storage.reconstructions import Batch

SHAPE = (1, 8, 8)
N = 4000


def replay(images: Tensor, fraction: float = 0.25) -> Replay:
    memory = Replay("runs/a", fraction, len(images))
    memory.recall(images)
    return memory


def test_a_fraction_of_the_rows_is_remembered() -> None:
    images = torch.arange(1.0, 4.0).view(3, 1, 1, 1).expand(3, *SHAPE)
    with seeded(0):
        batch = replay(images)(Batch(torch.zeros(N, *SHAPE), 0, torch.arange(N)))
    found = batch.x[:, 0, 0, 0]
    assert batch.remembered is not None and torch.equal(batch.remembered, found > 0)
    assert set(found.tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert abs(float(batch.remembered.float().mean()) - 0.25) < 4 * (0.25 * 0.75 / N) ** 0.5


def test_no_memory_draws_nothing() -> None:
    """The default run's draws are those that they were."""
    batch = Batch(torch.zeros(4, *SHAPE), 0, torch.arange(4))
    with seeded(0):
        expected = torch.rand(3)
    with seeded(0):
        assert Memory()(batch) is batch and torch.equal(torch.rand(3), expected)


def test_of_remembered_images_all_coefficients_count() -> None:
    """Nothing is known of what was measured of them: as with imputed=1, exactly in theory.

    The error goes through a basis and back, in float32: relative 1e-5.
    """
    channel = make_channel(Mask(SHAPE, rho=0.5), GaussianNoise(0.05))
    x = torch.randn(16, *SHAPE, generator=generator("x"))
    measurements = MeasurementSet(channel.draw(x, generator("y")), channel)
    objectives = [
        Recorrupted(condition=Conditioning(), p_uncond=0.0, fresh=True, imputed=imputed)
        for imputed in (0.0, 1.0)
    ]
    channels = objectives[0].cond_channels(channel)
    with seeded("weights"):
        network = UNet(SHAPE, channels, channels=[16], blocks=[1])
    denoiser = Denoiser(network, VESchedule(0.02, 20.0))

    def loss(objective: Recorrupted, remembered: bool) -> float:
        batch = Batch(x, 0, torch.arange(16), remembered=torch.full((16,), remembered))
        t = torch.linspace(0.2, 0.8, 16)
        with seeded("loss"), torch.no_grad():
            key = (0, "m_step", 0)
            return float(objective.loss(denoiser, batch, t, measurements=measurements, key=key))

    some, all_of = objectives
    assert loss(some, True) == pytest.approx(loss(all_of, True), rel=1e-5)
    assert loss(some, False) != pytest.approx(loss(all_of, False), rel=1e-2)


def test_a_chain_of_runs_keeps_images_of_all() -> None:
    """30 measurements of each of three runs: a third of 12 images is of each."""
    held: dict[str, Tensor] = {}
    for run in range(3):
        held = pooled(torch.full((30, 1), float(run)), held, size=12, count=30, key=(run,))
        assert int(held["stand_for"]) == 30 * (run + 1)
    found = held["images"].flatten().tolist()
    assert len(found) == 12 and found.count(2.0) == 4
    assert found.count(0.0) + found.count(1.0) == 8 and min(map(found.count, (0.0, 1.0))) > 0


@pytest.mark.parametrize("size", [1, 5])
def test_halves_of_an_odd_memory_fill_it(size: int) -> None:
    """Of two runs of as many measurements: ½ is rounded to 0, and 2½ to 2, for one run alone."""
    held: dict[str, Tensor] = {}
    for run in range(2):
        held = pooled(torch.full((30, 1), float(run)), held, size=size, count=30, key=(run,))
    assert len(held["images"]) == size


def test_of_fewer_images_all_are_kept() -> None:
    held = pooled(torch.arange(5.0)[:, None], {}, size=12, count=5, key=(0,))
    assert sorted(held["images"].flatten().tolist()) == [0, 1, 2, 3, 4]


class Remembering(SmallRun):
    """A run that remembers its first eight true images."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        memory = Replay("runs/a", 0.5, 8)
        self.module.m_step = replace(self.module.m_step, memory=memory)
        memory.recall(self.measurements.known_truth("a test")[:8])


POINTS = [("module", "training_step", 2), ("store", "write", 6), ("module", "training_step", 6)]


def test_law_4_a_killed_run_remembers_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = Remembering(tmp_path / "whole").fit()
    plain = SmallRun(tmp_path / "plain").fit()
    assert whole.module.weights_hash() != plain.module.weights_hash()
    for owner, method, call in POINTS:
        path = tmp_path / f"{method}_{call}"
        first = Remembering(path)
        with pytest.raises(Killed):
            dying(first, getattr(first, owner), method, call).fit()
        resumed = Remembering(path).fit()
        assert resumed.module.weights_hash() == whole.module.weights_hash()
        assert resumed.store.digest(2) == whole.store.digest(2)


def test_numbers_out_of_range_are_refused() -> None:
    assert SIZE > 8
    for make, key in (
        (lambda: Replay("a", 1.0, 8), "fraction"),
        (lambda: Replay("a", 0.5, 0), "size"),
        (lambda: Memory(3), "path"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=rf"memory\.{key} must be"):
            make()
