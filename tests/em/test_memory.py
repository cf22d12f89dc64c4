"""Memory: what is put into batches, what is kept, and what weights cannot do any more."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from azula.noise import VESchedule
from small_run import SIZE, SmallRun
from test_resume import Killed, dying
from torch import Tensor, nn
from torch.nn.functional import unfold

from diffem.corruption import GaussianNoise, Mask, make_channel
from diffem.data.measurements import MeasurementSet
from diffem.denoiser import Conditioning, Denoiser
from diffem.em import Memory, Projection, Replay
from diffem.em.memory import pooled
from diffem.em.objective import Recorrupted
from diffem.em.projection import extended, layers, outside, rows_of
from diffem.network import UNet
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator, seeded
from diffem.storage.reconstructions import Batch

SHAPE = (1, 8, 8)
N = 4000


def replay(images: Tensor, fraction: float = 0.25) -> Replay:
    memory = Replay("runs/a", fraction, len(images))
    memory.recall({"images": images}, Denoiser(nn.Identity(), VESchedule()))
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
    denoiser = Denoiser(UNet(SHAPE, channels, channels=[16], blocks=[1]), VESchedule(0.02, 20.0))

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


def test_of_fewer_images_all_are_kept() -> None:
    held = pooled(torch.arange(5.0)[:, None], {}, size=12, count=5, key=(0,))
    assert sorted(held["images"].flatten().tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 6, 5)),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), (2, 3, 6, 5)),
        (nn.Conv1d(3, 4, 3, padding=1), (2, 3, 7)),
        (nn.Conv3d(2, 4, 3, padding=1), (2, 2, 4, 5, 3)),
        (nn.Linear(5, 4), (2, 5)),
    ],
    ids=lambda value: str(value),
)
def test_a_layer_s_rows_are_what_its_weights_multiply(
    layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]
) -> None:
    """Rows times weights are the layer's output without its bias; windows as torch cuts them."""
    x = torch.randn(shape, generator=generator("x"))
    rows = rows_of(layer, x)
    assert layer.bias is not None
    with torch.no_grad():
        out = (layer(x) - layer.bias.view(-1, *(1,) * (x.ndim - 2))).movedim(1, -1)
        torch.testing.assert_close(rows @ layer.weight.flatten(1).T, out.reshape(len(rows), -1))
    if isinstance(layer, nn.Conv2d):
        cut = unfold(x, 3, padding=1, stride=layer.stride)  # type: ignore[arg-type]
        torch.testing.assert_close(rows, cut.mT.reshape(rows.shape))


def test_a_basis_is_of_the_space_of_the_inputs() -> None:
    """Inputs in 3 of 8 dimensions; then others, in 2 further ones."""
    a = torch.randn(100, 3, dtype=torch.float64, generator=generator("a"))
    space = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=generator("q"))).Q
    first = extended((a @ space[:, :3].T).T @ (a @ space[:, :3].T), None, 0.999999)
    assert first.shape == (8, 3)
    torch.testing.assert_close(first @ first.T, (space[:, :3] @ space[:, :3].T).float())
    b = a[:, :2] @ space[:, 3:5].T
    both = extended(b.T @ b, first, 0.999999)
    assert both.shape == (8, 5)
    torch.testing.assert_close(both @ both.T, (space[:, :5] @ space[:, :5].T).float())
    assert extended(b.T @ b, both, 0.9).shape == (8, 5)  # nothing is left to add
    assert extended(torch.diag(torch.tensor([8.0, 1, 1]).double()), None, 0.79).shape == (3, 1)
    assert extended(torch.diag(torch.tensor([8.0, 1, 1]).double()), None, 0.81).shape == (3, 2)


class Remembering(SmallRun):
    """A run with a memory, of which half of the inputs of each layer are protected."""

    def __init__(self, path: Path, memory: Memory) -> None:
        super().__init__(path)
        optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
        self.module.m_step = replace(self.module.m_step, memory=memory, optimizer=optimizer)
        memory.recall(self.kept(), self.module.denoiser)

    def kept(self) -> dict[str, Tensor]:
        if isinstance(self.module.m_step.memory, Replay):
            return {"images": self.measurements.known_truth("a test")[:8]}
        bases = {}
        for name, layer in layers(self.module.denoiser):
            size = layer.weight.flatten(1).shape[1]  # type: ignore[operator]
            matrix = torch.randn(size, size // 2, generator=generator(name))
            bases[name] = torch.linalg.qr(matrix).Q
        return bases


MEMORIES = {
    "replay": lambda: Replay("runs/a", 0.5, 8),
    "projection": lambda: Projection("runs/a", 0.9, 8),
}


def test_weights_do_to_old_inputs_what_they_did(tmp_path: Path) -> None:
    """W U is as it was after 8 steps of AdamW, whose scaling and decay leave that space.

    Each step rounds W to 6e-8 of it: 1e-5 for 8 steps of weights below 10.
    """
    run = Remembering(tmp_path / "r", MEMORIES["projection"]())
    before = {name: p.detach().clone() for name, p in run.module.denoiser.named_parameters()}
    run.fit()
    weights = {f"{name}.weight" for name, _ in layers(run.module.denoiser)}
    moved = 0.0
    for name, parameter in run.module.denoiser.named_parameters():
        step = parameter.detach() - before[name]
        if name not in weights:
            assert not step.any(), name
            continue
        basis = run.kept()[name.removesuffix(".weight")]
        assert (step.flatten(1) @ basis).abs().max() < 1e-5, name
        torch.testing.assert_close(outside(step, basis), step, rtol=0, atol=1e-5)
        moved = max(moved, float(step.abs().max()))
    assert moved > 1e-2  # and yet it learns


POINTS = [("module", "training_step", 2), ("store", "write", 6), ("module", "training_step", 6)]


@pytest.mark.parametrize("name", MEMORIES)
def test_law_4_a_killed_run_remembers_as_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    whole = Remembering(tmp_path / "whole", MEMORIES[name]()).fit()
    plain = SmallRun(tmp_path / "plain").fit()
    assert whole.module.weights_hash() != plain.module.weights_hash()
    for owner, method, call in POINTS:
        path = tmp_path / f"{method}_{call}"
        first = Remembering(path, MEMORIES[name]())
        with pytest.raises(Killed):
            dying(first, getattr(first, owner), method, call).fit()
        resumed = Remembering(path, MEMORIES[name]()).fit()
        assert resumed.module.weights_hash() == whole.module.weights_hash()
        assert resumed.store.digest(2) == whole.store.digest(2)


def test_numbers_out_of_range_are_refused() -> None:
    assert SIZE > 8
    for make, key in (
        (lambda: Replay("a", 1.0, 8), "fraction"),
        (lambda: Replay("a", 0.5, 0), "size"),
        (lambda: Projection("a", 1.0, 8), "energy"),
        (lambda: Memory(3), "path"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=rf"memory\.{key} must be"):
            make()
