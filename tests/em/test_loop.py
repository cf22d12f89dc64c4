"""Laws 1, 3 and 5 on a small EM run."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from azula.sample import DDIMSampler, DDPMSampler
from lightning.pytorch.strategies import SingleDeviceStrategy
from small_run import CHUNK, ROUNDS, SIZE, STEPS, SmallRun

from diffem.em.init import FromClean, FromMeasurement
from diffem.em.objective import Ambient
from diffem.em.round import Round
from diffem.posterior import (
    DPS,
    MMPS,
    DiffPIR,
    Isotropic,
    PiGDM,
    PrincipalComponents,
    Restoration,
    SplitGibbs,
    reconstruct,
)
from diffem.runtime.errors import UserError
from diffem.storage.reconstructions import Batch


def test_law_1_the_truth_does_not_leak(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "a").fit()
    noise = torch.randn(SIZE, 1, 8, 8)
    blind = SmallRun(tmp_path / "b").with_truth(noise).fit()
    assert run.module.weights_hash() == blind.module.weights_hash()
    assert run.store.digest(ROUNDS) == blind.store.digest(ROUNDS)


def test_law_1_would_see_a_leak(tmp_path: Path) -> None:
    """The supervised bound does use the truth, and the same test sees it."""
    hashes = []
    for name, noise in (("a", 0.0), ("b", 1.0)):
        run = SmallRun(tmp_path / name)
        run.with_truth(run.measurements.known_truth("law 1") + noise * torch.randn(SIZE, 1, 8, 8))
        run.supervised = True
        hashes.append(run.fit().module.weights_hash())
    assert hashes[0] != hashes[1]


def test_law_3_chunks_depend_on_seed_round_and_weights_alone(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "a").fit()
    with run.module.averaged() as denoiser:
        draw = run.posterior(denoiser, run.measurements.channel)
        rows = run.store.rows(3)
        torch.manual_seed(99)  # nothing outside the key matters
        x = reconstruct(
            draw,
            run.measurements.select(rows),
            size=CHUNK,
            key=(0, "e-step", ROUNDS, 3),
            device="cpu",
        )
    assert rows == slice(96, 100)  # the last chunk, padded and not dropped
    assert torch.equal(x, run.store.open(ROUNDS).__getitems__(range(96, 100)).x)


def test_law_3_missing_chunks_are_made_again_the_same(tmp_path: Path) -> None:
    whole = SmallRun(tmp_path / "a").fit()
    half = SmallRun(tmp_path / "b")
    for chunk in (0, 2):  # as a killed E-step of round 0 leaves them
        rows = half.store.rows(chunk)
        half.store.write(0, chunk, whole.store.open(0).__getitems__(range(100)[rows]).x)
    half.fit()
    assert half.store.digest(0) == whole.store.digest(0)
    assert half.module.weights_hash() == whole.module.weights_hash()


def test_the_seed_decides_the_run(tmp_path: Path) -> None:
    first, again, other = (
        SmallRun(tmp_path / name, seed=seed).fit() for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.module.weights_hash() == again.module.weights_hash()
    assert first.module.weights_hash() != other.module.weights_hash()


def test_law_5_every_batch_is_of_the_current_round(
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    step = small_run.module.training_step

    def record(batch: Batch) -> torch.Tensor:
        seen.append((batch.round, small_run.data.state.round, len(batch.x)))
        return step(batch)

    monkeypatch.setattr(small_run.module, "training_step", record)
    small_run.fit()
    assert seen == [(k, k, 8) for k in range(ROUNDS) for _ in range(STEPS)]


def test_law_5_a_stale_batch_is_refused(small_run: SmallRun) -> None:
    small_run.fit()
    small_run.module._trainer = SimpleNamespace(
        datamodule=SimpleNamespace(state=SimpleNamespace(round=2))
    )  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="a batch of round 1 reached round 2"):
        small_run.module.training_step(Batch(torch.zeros(2, 1, 8, 8), 1, torch.arange(2)))


def test_rounds_are_told_and_committed(small_run: SmallRun) -> None:
    small_run.fit()
    assert [round.number for round in small_run.rounds] == [0, 1, 2]
    assert all(small_run.store.committed(k) for k in range(ROUNDS + 1))
    first, second, _ = small_run.rounds
    assert first.costs["m_step_seconds"] == 0 and first.costs["loss"] is None
    seconds, loss = second.costs["m_step_seconds"], second.costs["loss"]
    assert seconds is not None and seconds > 0 and loss is not None and loss > 0


def test_network_evaluations_are_the_method_s_own(tmp_path: Path) -> None:
    """2 B of each step, and each E-step's padded chunks times the sampler's steps; no report's."""
    run = SmallRun(tmp_path)

    def evaluate(round: Round) -> None:
        run.rounds.append(round)
        with run.module.averaged() as denoiser:
            draw = run.posterior(denoiser, run.measurements.channel).uncounted()
            draw.sample(run.measurements.select(slice(3)))

    run.record = evaluate  # type: ignore[method-assign]
    run.fit()
    e_step, m_step = 4 * len(run.store.chunks) * CHUNK, 2 * 8 * STEPS
    assert [r.costs["nfe"] for r in run.rounds] == [k * (e_step + m_step) for k in range(3)]
    assert [r.costs["optimizer_steps"] for r in run.rounds] == [k * STEPS for k in range(3)]


def test_a_budget_is_met_to_the_nearest_round() -> None:
    settings = SmallRun.settings_of(rounds=99)
    timed, counted = replace(settings, seconds=60.0), replace(settings, nfe=1e6)
    assert not settings.exhausted(1e9, 1e9, (1e9, 1e9))
    # Rounds of 25 s: after two, a third would end 15 s late, after 10 s early: stop.
    assert not timed.exhausted(25.0, 0, (25.0, 0)) and timed.exhausted(50.0, 0, (25.0, 0))
    # Rounds of 22 s: a third ends 6 s late, two end 16 s early: go on.
    assert not timed.exhausted(44.0, 0, (22.0, 0)) and timed.exhausted(66.0, 0, (22.0, 0))
    # A long first round of 40 s and short ones of 5 s after it.
    assert not timed.exhausted(55.0, 0, (5.0, 0)) and timed.exhausted(60.0, 0, (5.0, 0))
    assert not counted.exhausted(1e9, 4e5, (0, 4e5)) and counted.exhausted(0, 8.1e5, (0, 4e5))


def test_all_processes_take_the_rate_of_the_first_one_s_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under em.seconds the rate follows the time, and the processes' clocks differ."""
    strategy = SingleDeviceStrategy
    original = strategy.broadcast

    def from_another(self: SingleDeviceStrategy, value: object, src: int = 0) -> object:
        return 0.25 if isinstance(value, float) else original(self, value, src)

    monkeypatch.setattr(strategy, "broadcast", from_another)
    run = SmallRun(tmp_path / "a")
    run.settings = replace(run.settings, restart=False, seconds=1e6)
    assert run.fit().data.state.progress == 0.25


def test_no_round_begins_after_its_time(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "a", rounds=5)
    run.settings = replace(run.settings, seconds=1e-6)
    assert [round.number for round in run.fit().rounds] == [0, 1]


def test_each_round_starts_from_the_average_with_a_fresh_optimiser(small_run: SmallRun) -> None:
    small_run.fit()
    module = small_run.module
    for weight, average in zip(
        module.denoiser.parameters(), module.average.parameters(), strict=True
    ):
        assert torch.equal(weight, average)
    optimizer = module.trainer.strategy.optimizers[0]
    assert not optimizer.state  # Adam has taken no step since the last restart
    assert module.trainer.global_step == ROUNDS * STEPS


def test_init_from_the_observation(small_run: SmallRun) -> None:
    small_run.fit(FromMeasurement())
    y = small_run.measurements.select(slice(None)).y
    assert torch.equal(small_run.store.open(0).__getitems__(range(SIZE)).x, y)


def test_init_from_few_clean_images(small_run: SmallRun) -> None:
    small_run.fit(FromClean(count=3))
    x = small_run.store.open(0).__getitems__(range(SIZE)).x.flatten(1)
    clean = small_run.measurements.known_truth("the init")[:3].flatten(1)
    assert len(x.unique(dim=0)) == 3
    assert torch.cdist(x, clean).min(dim=1).values.max() == 0


STEPS_OF, DDPM = partial(DDIMSampler, steps=4), partial(DDPMSampler, steps=4)
RIVALS = {
    "em_mmps": partial(MMPS, sampler=STEPS_OF, solver="gmres", iterations=1),
    "em_dps": partial(DPS, sampler=DDPM, zeta=1.0),
    "em_pigdm": partial(PiGDM, sampler=STEPS_OF, covariance=Isotropic(1.0)),
    "em_mmps_cov_x": partial(PiGDM, sampler=STEPS_OF, covariance=PrincipalComponents(8)),
    "ambient": Restoration,
    "em_diffpir": partial(DiffPIR, sampler=STEPS_OF, lmbda=1.0, iterations=2),
    "em_pnp": partial(SplitGibbs, sampler=DDPM, coupling=(3.0, 0.02), sweeps=2),
}


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_share_the_loop(name: str, tmp_path: Path) -> None:
    """Their rounds obey the same laws: whole, finite, decided by the seed, blind to the truth."""
    objective = Ambient(delta=0.1) if name == "ambient" else None
    runs = [
        SmallRun(tmp_path / part, rival=RIVALS[name], objective=objective) for part in ("a", "b")
    ]
    runs[1].with_truth(torch.randn(SIZE, 1, 8, 8))
    for run in runs:
        run.fit()
    assert runs[0].store.digest(ROUNDS) == runs[1].store.digest(ROUNDS)
    first, last = (runs[0].store.open(k).__getitems__(range(SIZE)).x for k in (0, ROUNDS))
    assert last.shape == (SIZE, 1, 8, 8) and not torch.equal(first, last)


def test_a_batch_that_devices_cannot_share(small_run: SmallRun) -> None:
    small_run.fit()
    small_run.data.trainer = SimpleNamespace(world_size=3)  # type: ignore[assignment]
    with pytest.raises(
        UserError, match=r"em\.batch_size must be a multiple of the number of devices, 3"
    ):
        small_run.data.setup("fit")
