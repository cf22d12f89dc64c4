"""The guard of E-steps: its score is a proper one, and what it keeps stays as it is."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import CHUNK, SIZE, SmallRun
from test_resume import Killed, dying
from torch import Tensor

from diffem.cli.sweep import OBJECTIVES
from diffem.corruption import (
    Denoising,
    Fourier,
    GaussianNoise,
    LinearGaussianChannel,
    LinearOperator,
    Mask,
    Measurement,
    PoissonNoise,
    Radon,
    Weighting,
    make_channel,
)
from diffem.corruption.recorded import Recorded
from diffem.data.measurements import MeasurementSet, simulate_measurements
from diffem.em import Guard
from diffem.em.guard import ENTRIES, MSE, energy_score, hide, squared_error, varying_entries
from diffem.em.loop import EMLoop
from diffem.em.plateau import FIGURES
from diffem.metric.energy import HIDDEN_ENTRIES, HIDDEN_MSE, MEASUREMENT_ENERGY_DISTANCE
from diffem.posterior import Posterior
from diffem.report.verdict import kept_line
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator

STD, N = 0.5, 16_000
CHANNEL = make_channel(Mask((1, 2, 2), rho=0.5), GaussianNoise(STD))
GUARD = Guard(measurements=N, hidden=0.3)


class Normal(Posterior):
    """x ~ N(mean, std² I), whatever was measured; it keeps what it was given."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std
        self.given: list[Measurement] = []

    def draw(self, measurement: Measurement) -> Tensor:
        self.given.append(measurement)
        return self.mean + self.std * torch.randn_like(measurement.y)


def independent_entries(channel: LinearGaussianChannel = CHANNEL) -> MeasurementSet:
    """Returns measurements of x ~ N(0, I), whose measured entries tell nothing of the hidden."""
    x = torch.randn(N, 1, 2, 2, generator=generator("guard"))
    return simulate_measurements(x, channel, seed=0, split="heldout")


def score(posterior: Posterior, measurements: MeasurementSet) -> float:
    values = GUARD.scores(posterior, measurements, seed=0, chunk_size=N, device="cpu")
    assert values is not None
    return float(values[ENTRIES].mean())


def test_the_score_is_that_of_the_closed_form() -> None:
    """Of d independent normal entries of variance v, E‖ĥ - h‖ / 2 = √v Γ((d + 1) / 2) / Γ(d / 2).

    The score of one measurement has a standard deviation below its mean, and is bounded by it:
    five standard errors.
    """
    measurements = independent_entries()
    task = hide(CHANNEL, measurements.select(slice(None)), GUARD.hidden, key=(0, "guard"))
    d = task.entries.flatten(1).sum(dim=1)
    assert d.min() >= 1
    exact = (torch.lgamma((d + 1) / 2) - torch.lgamma(d / 2)).exp().mean()
    expected = float(exact) * math.sqrt(1 + STD**2)
    assert abs(score(Normal(0, 1), measurements) - expected) < 5 * expected / len(task) ** 0.5


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.0, 2.0), (0.7, 1.0)])
def test_no_other_law_scores_better(mean: float, std: float) -> None:
    """Too little spread, too much of it, and a bias."""
    measurements = independent_entries()
    assert score(Normal(0, 1), measurements) < score(Normal(mean, std), measurements)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.0, 0.0), (0.7, 1.0)])
def test_the_squared_error_is_that_of_the_closed_form(mean: float, std: float) -> None:
    """Of the mean of two samples against h ~ N(0, 1 + σ²): mean² + std² / 2 + 1 + σ².

    The squared error of one entry has the standard deviation √2 (std² / 2 + 1 + σ²) and, by its
    mean, 2 |mean| √(…) besides: five standard errors of one entry a measurement.
    """
    values = GUARD.scores(
        Normal(mean, std), independent_entries(), seed=0, chunk_size=N, device="cpu"
    )
    assert values is not None
    variance = std**2 / 2 + 1 + STD**2
    deviation = math.sqrt(2 * variance**2 + 4 * mean**2 * variance)
    found = float(values[MSE].mean())
    assert abs(found - mean**2 - variance) < 5 * deviation / len(values[MSE]) ** 0.5


def test_where_nothing_is_hidden_there_is_no_squared_error() -> None:
    """A NaN would be the mean of all measurements."""
    task = hide(CHANNEL, independent_entries().select(slice(20)), 0.3, key=(0, "guard"))
    entries = task.entries.clone()
    entries[1] = 0
    samples = torch.zeros(2, len(task), 1, 2, 2)
    found = squared_error(CHANNEL, replace(task, entries=entries), samples)
    assert found[1] == 0 and found.isfinite().all() and (found > 0).sum() == len(task) - 1


def test_the_squared_error_tells_small_differences_of_photon_counts() -> None:
    """Predictions whose error is 4 % less: of 256 measurements of 64 hidden counts, ten times."""
    channel = make_channel(Denoising((1, 8, 8)), PoissonNoise(10.0))
    better = []
    for k in range(10):
        x = torch.rand(256, 1, 8, 8, generator=generator(k)) * 2 - 1
        task = hide(channel, channel.draw(x, generator(k, 1)), 0.25, key=(k, "guard"))
        off = 0.3 * torch.randn(2, 256, 1, 8, 8, generator=generator(k, 2))
        near, far = (squared_error(channel, task, x + own) for own in (0.98 * off, off))
        better.append(bool(near.mean() < far.mean()))
    assert all(better)


def test_its_scores_are_those_that_runs_describe_and_searches_minimise() -> None:
    """The EM loop does not import the metrics, nor a sweep's command PyTorch."""
    assert [ENTRIES, MSE] == [HIDDEN_ENTRIES.name, HIDDEN_MSE.name]
    assert OBJECTIVES == (HIDDEN_MSE.name, MEASUREMENT_ENERGY_DISTANCE.name)
    assert FIGURES == (HIDDEN_MSE.name, HIDDEN_ENTRIES.name, MEASUREMENT_ENERGY_DISTANCE.name)
    assert HIDDEN_MSE.better == HIDDEN_ENTRIES.better == "lower"


def test_the_posterior_is_not_given_what_is_hidden() -> None:
    measurements, posterior = independent_entries(), Normal(0, 1)
    score(posterior, measurements)
    task = hide(CHANNEL, measurements.select(slice(None)), GUARD.hidden, key=(0, "guard"))
    for given in posterior.given:
        assert all(torch.equal(a, b) for a, b in zip(given, task.rest, strict=True))
    assert not (task.rest.y * task.entries).any() and not (task.rest.operator * task.entries).any()
    assert torch.equal(task.rest.y + task.target.y * task.entries, task.target.y)
    # Of the measured entries the fraction is hidden: Bernoulli, five standard deviations.
    y, operator, _ = measurements.select(slice(None))
    measured = CHANNEL.measured_mask(y, operator).sum()
    wanted, deviation = GUARD.hidden * measured, (0.21 * measured).sqrt()
    assert abs(task.entries.sum() - wanted) < 5 * deviation


def test_recorded_masks_are_hidden_too() -> None:
    measurements = independent_entries()
    operator = Recorded(CHANNEL.forward_operator, measurements.select(slice(None)).operator)
    recorded = measurements.under(CHANNEL.with_operator(operator))
    assert score(Normal(0, 1), recorded) == score(Normal(0, 1), measurements)


def test_what_every_measurement_has_is_not_hidden() -> None:
    """The middle of k-space is always there: a network has not learned to go without."""
    channel = make_channel(Fourier((1, 6, 8), acceleration=2, centre=0.25), GaussianNoise(STD))
    measurement = channel.draw(torch.zeros(200, 1, 6, 8), generator("always"))
    task = hide(channel, measurement, 0.5, key=(0, "guard"))
    hidden = task.entries.flatten(0, 2).mean(dim=0)
    assert (hidden[3:5] == 0).all() and (hidden[[0, 1, 2, 5, 6, 7]] > 0.1).all()
    assert (task.rest.operator[..., 3:5] == 1).all()
    assert Guard.holds_back(channel)


ALWAYS_THERE: dict[str, LinearOperator] = {
    "weights": Weighting((1, 4, 4), ratio=[1, 3]),
    "projections": Radon((1, 4, 4), angles=3),
    "one mask": Recorded(Mask((1, 4, 4), rho=0.5), torch.eye(4).expand(20, 1, 4, 4)),
}


@pytest.mark.parametrize("name", ALWAYS_THERE)
def test_where_all_measure_the_same_a_part_is_split_off_by_the_noise(name: str) -> None:
    channel = make_channel(ALWAYS_THERE[name], GaussianNoise(STD))
    measurement = channel.draw(torch.zeros(20, 1, 4, 4), generator("always"))
    task = hide(channel, measurement, 0.25, key=(0, "guard"))
    assert torch.equal(task.rest.operator, measurement.operator)
    measured = channel.measured_mask(measurement.y, measurement.operator)
    assert torch.equal(task.entries, measured.expand_as(measurement.y))
    torch.testing.assert_close(task.rest.noise, STD / 0.75**0.5 * torch.ones(20, 1))
    assert not Guard.holds_back(channel) and Guard.fits(channel)


def test_projections_that_some_measurements_lack_are_hidden() -> None:
    angles = torch.tensor([[0.0, 60.0, 120.0], [0.0, 60.0, torch.nan]]).repeat(10, 1)
    operator = Recorded(Radon((1, 4, 4), angles=3), angles)
    varying = varying_entries(operator)
    assert varying is not None and varying.tolist() == [False, False, True]


def test_large_masks_are_drawn_one_at_a_time() -> None:
    """Of a volume 64 masks would take gigabytes."""
    drawn = []

    class Volumes(Mask):
        def draw(self, n: int, generator: torch.Generator) -> Tensor:
            drawn.append(n)
            return super().draw(n, generator)

    varying = varying_entries(Volumes((1, 8, 8, 8), rho=0.5))
    assert varying is not None and varying.shape == (1, 8, 8, 8) and varying.all()
    assert max(drawn) == 1
    assert varying_entries(Denoising((1, 4, 4))) is None


def test_few_measurements_have_no_score() -> None:
    n = 40
    all_but_a_few = torch.zeros(n, 1, 2, 2)
    all_but_a_few[:15] = 1
    measurement = Measurement(torch.zeros(n, 1, 2, 2), all_but_a_few, torch.ones(n, 1))
    few = MeasurementSet(measurement, CHANNEL)
    guard = Guard(measurements=n, hidden=0.9)
    assert guard.scores(Normal(0, 1), few, seed=0, chunk_size=8, device="cpu") is None


def test_where_no_entry_can_be_hidden_a_part_is_split_off_by_the_noise() -> None:
    """x ~ N(0, I) and y = x + σ ε: of the two parts the second, y_2, is predicted from y_1.

    The posterior given y_1 has mean y_1 v / (v + s²) and variance v s² / (v + s²), with v = 1 and
    s² = σ² / (1 - f). It is the best of three laws of another spread or mean.
    """
    sigma, fraction = 0.5, 0.8
    channel = make_channel(Denoising((1, 2, 2)), GaussianNoise(sigma))
    assert Guard.fits(channel) and not Guard.holds_back(channel) and Guard.holds_back(CHANNEL)
    guard = Guard(measurements=N, hidden=fraction)
    measurements = independent_entries(channel)
    s2 = sigma**2 / (1 - fraction)

    class Exact(Normal):
        def draw(self, measurement: Measurement) -> Tensor:
            assert torch.allclose(measurement.noise, torch.tensor(s2**0.5))
            mean = measurement.y / (1 + s2)
            std = (s2 / (1 + s2)) ** 0.5
            return self.mean + mean + self.std * std * torch.randn_like(mean)

    def of(posterior: Posterior) -> Tensor:
        values = guard.scores(posterior, measurements, seed=0, chunk_size=N, device="cpu")
        assert values is not None and len(values[ENTRIES]) == N
        return values[ENTRIES]

    best = of(Exact(0, 1))
    for other in (Exact(0, 0), Exact(0, 2), Exact(0.5, 1)):
        difference = of(other) - best
        assert difference.mean() > 3 * difference.std() / N**0.5


def guarded(path: Path, *, guard: bool = True, refresh: float = 1.0) -> SmallRun:
    """Returns a run whose network, after four steps, predicts worse than the Gaussian."""
    run = SmallRun(path)
    chosen = Guard(measurements=SIZE, hidden=0.2) if guard else None
    run.settings = replace(run.settings, guard=chosen, refresh=refresh)
    return run


def chunks(run: SmallRun, k: int) -> list[Tensor]:
    """Returns the chunks of a round."""
    return list(run.store.open(k).__getitems__(range(SIZE)).x.split(CHUNK))


def redrawn(run: SmallRun) -> list[float | None]:
    return [round.costs["redrawn"] for round in run.rounds]


def test_a_worse_network_replaces_nothing(tmp_path: Path) -> None:
    run, free = guarded(tmp_path / "a").fit(), guarded(tmp_path / "b", guard=False).fit()
    assert redrawn(run) == [1, 0, 0] and redrawn(free) == [1, 1, 1]
    assert run.store.digest(0) == run.store.digest(1) == run.store.digest(2)
    scores = [round.costs["hidden_entries"] for round in run.rounds]
    assert scores[0] is not None and all(s is not None and s > scores[0] for s in scores[1:])
    assert run.data.state.score == scores[0]
    rows = [{"round": r.number, **r.costs} for r in run.rounds]
    assert f"{scores[2]:.4g} against {scores[0]:.4g}" in (kept_line(rows) or "")
    assert kept_line([{"round": r.number, **r.costs} for r in free.rounds]) is None


def test_a_better_network_replaces_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([3.0, 2.0, 1.0])
    monkeypatch.setattr(
        Guard, "scores", lambda *_, **__: {ENTRIES: torch.tensor([next(scores)] * 2)}
    )
    run = guarded(tmp_path / "a").fit()
    free = guarded(tmp_path / "b", guard=False).fit()
    assert redrawn(run) == [1, 1, 1]
    assert run.store.digest(2) == free.store.digest(2)


@pytest.mark.parametrize(
    ("entries", "mse", "drawn"),
    [([3.0, 2.0, 1.0], [10.0, 20.0, 30.0], [1, 1, 1]), ([3, 4, 5], [30, 20, 10], [1, 0, 0])],
)
def test_the_energy_score_alone_decides(
    entries: list[float],
    mse: list[float],
    drawn: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A squared error may be lower since samples spread too little."""
    scores = iter(zip(entries, mse, strict=True))

    def given(*_: object, **__: object) -> dict[str, Tensor]:
        own = zip((ENTRIES, MSE), next(scores), strict=True)
        return {name: torch.tensor([float(value)] * 2) for name, value in own}

    monkeypatch.setattr(Guard, "scores", given)
    assert redrawn(guarded(tmp_path).fit()) == drawn


def test_the_guard_asks_until_one_network_has_overtaken_the_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([3.0, 2.0, 9.0])
    monkeypatch.setattr(
        Guard, "scores", lambda *_, **__: {ENTRIES: torch.tensor([next(scores)] * 2)}
    )
    run = guarded(tmp_path).fit()
    assert redrawn(run) == [1, 1, 1] and run.data.state.score is None


def test_a_fraction_of_the_chunks_is_drawn_anew(tmp_path: Path) -> None:
    """Of four chunks ⌈0.3 · 4⌉ = 2, as they would be if all were drawn anew."""
    part = guarded(tmp_path / "a", guard=False, refresh=0.3).fit()
    whole = guarded(tmp_path / "b", guard=False).fit()
    assert redrawn(part) == [1, 0.5, 0.5]
    before, now, free = chunks(part, 0), chunks(part, 1), chunks(whole, 1)
    same = [torch.equal(a, b) for a, b in zip(before, now, strict=True)]
    assert sum(same) == 2
    assert [torch.equal(a, b) for a, b in zip(free, now, strict=True)] == [not s for s in same]


@pytest.mark.parametrize("guard", [True, False])
def test_law_4_a_kill_among_kept_chunks_changes_nothing(guard: bool, tmp_path: Path) -> None:
    whole = guarded(tmp_path / "a", guard=guard, refresh=0.5).fit()
    first = guarded(tmp_path / "b", guard=guard, refresh=0.5)
    with pytest.raises(Killed):
        dying(first, first.store, "_write_chunk", 7).fit()  # the third of E-step 1
    resumed = guarded(tmp_path / "b", guard=guard, refresh=0.5).fit()
    assert resumed.module.weights_hash() == whole.module.weights_hash()
    assert [resumed.store.digest(k) for k in range(3)] == [whole.store.digest(k) for k in range(3)]


def test_a_damaged_chunk_is_not_carried_over(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "r").fit()
    chunk = run.store.folder(1) / "chunk_00001.npy"
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(UserError, match=r"chunk_00001\.npy is damaged"):
        run.store.carry_over(2, 1)


SAME = {ENTRIES: [7.0]}


def test_all_processes_get_the_first_one_s_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = guarded(tmp_path / "r").fit()
    trainer, heard = run.module.trainer, []
    monkeypatch.setattr(trainer.strategy, "broadcast", lambda value: heard.append(value) or SAME)
    loop = next(c for c in trainer.callbacks if isinstance(c, EMLoop))  # type: ignore[attr-defined]
    assert loop.scores(trainer, Normal(0, 1)) is SAME and heard[0].keys() == {ENTRIES, MSE}


def test_scores_of_photon_counts_compare_reconstructions_and_not_draws() -> None:
    """Of independent counts the scores of near reconstructions differ as any two scores do."""
    channel = make_channel(Denoising((1, 8, 8)), PoissonNoise(10.0))
    x = torch.rand(64, 1, 8, 8, generator=generator(0)) * 2 - 1
    task = hide(channel, channel.draw(x, generator(1)), 0.25, key=(0, "guard"))
    samples = torch.rand(2, 64, 1, 8, 8, generator=generator(2)) * 2 - 1
    scores, near = (
        energy_score(channel, task, drawn, key=(0, "guard")) for drawn in (samples, samples + 0.01)
    )
    assert (near - scores).std() < scores.std() / 10
