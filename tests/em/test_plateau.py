"""The stopping rule: it sees improvements beyond the noise, and is resumed exactly."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import SmallRun
from test_resume import Killed, dying

from diffem.cli.checks import check_stop
from diffem.em import Guard, Plateau, Round
from diffem.em.guard import ENTRIES
from diffem.runtime.errors import UserError
from diffem.runtime.rng import generator

N = 100
NAME = "measurement_energy_distance"
ROUNDS = 6


def figure(mean: float, *, seed: int = 0, own: float = 0.1) -> list[float]:
    """Returns values of measurements: far apart from one another, less so from round to round."""
    common = torch.randn(N, generator=generator("common"))
    return (mean + common + own * torch.randn(N, generator=generator(seed))).tolist()


def test_measurements_are_compared_one_by_one() -> None:
    """An improvement by 0.1 is far below the noise of a mean, and above that of a difference.

    The difference has a standard error of 0.1 √2 / √100 = 0.014, a mean one of 0.1.
    """
    assert Plateau.improves(figure(0.9, seed=1), figure(1.0))
    assert not Plateau.improves(figure(1.1, seed=1), figure(1.0))
    assert not Plateau.improves(figure(1.0), figure(1.0))


def test_chance_alone_seldom_improves() -> None:
    """By more than one standard error in 16 of 100: 320 ± 35 of 2,000, two deviations of 16."""
    found = sum(
        Plateau.improves(figure(1, seed=2 * s), figure(1, seed=2 * s + 1)) for s in range(2000)
    )
    assert 250 < found < 390


class WithFigures(SmallRun):
    """A run that stops by a figure, of patience 2.

    Arguments:
        path: Its folder.
        means: The figure of each round.
    """

    def __init__(self, path: Path, means: Sequence[float]) -> None:
        super().__init__(path, rounds=ROUNDS)
        self.means = means
        self.settings = replace(self.settings, stop=Plateau(NAME, patience=2))

    def record(self, round: Round) -> dict[str, list[float]]:
        """Returns the round's figure."""
        super().record(round)
        return {NAME: figure(self.means[round.number], seed=round.number)}


@pytest.mark.parametrize(
    ("means", "last"),
    [
        ([5, 4, 3, 2, 1, 0, -1], 6),  # improves to the end
        ([0, 1, 3, 3, 3, 2, 1], 4),  # rounds 0 and 1 are not compared; 3 and 4 do not improve on 2
        ([0, 4, 3.9, 4.1, 3.7, 4, 4], 6),
        ([0, 1, 2, 3, 4, 5, 6], 4),
    ],
)
def test_a_plateau_ends_the_run(
    means: list[float], last: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = WithFigures(tmp_path / "r", means).fit()
    assert [round.number for round in run.rounds] == list(range(last + 1))
    said = "has not improved since round" in capsys.readouterr().err.replace("\n", " ")
    assert said == (last < ROUNDS)


def test_law_4_a_killed_run_stops_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    means = [0, 4, 3, 3, 3, 2, 1]
    whole = WithFigures(tmp_path / "a", means).fit()
    for write in (9, 14, 18):  # chunks in the E-steps of rounds 2, 3 and 4
        first = WithFigures(tmp_path / str(write), means)
        with pytest.raises(Killed):
            dying(first, first.store, "_write_chunk", write).fit()
        resumed = WithFigures(tmp_path / str(write), means).fit()
        assert resumed.data.state.round == whole.data.state.round == 4
        assert resumed.data.state.improved == whole.data.state.improved
        assert resumed.module.weights_hash() == whole.module.weights_hash()


def test_a_resumed_finished_run_does_not_go_further(tmp_path: Path) -> None:
    means = [0, 1, 2, 3, 4, 5, 6]
    WithFigures(tmp_path / "r", means).fit()
    again = WithFigures(tmp_path / "r", means).fit()
    assert again.data.state.round == 4 and not again.rounds


def test_hidden_entries_are_the_guard_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    means = iter([0, 4, 3, 3, 3, 2, 1])
    monkeypatch.setattr(
        Guard, "scores", lambda *_, **__: {ENTRIES: torch.tensor(figure(next(means))).double()}
    )
    run = WithFigures(tmp_path / "r", [9, 8, 7, 6, 5, 4, 3])
    guard, stop = Guard(measurements=64, hidden=0.2), Plateau("hidden_entries", patience=2)
    run.settings = replace(run.settings, guard=guard, stop=stop)
    assert run.fit().data.state.round == 4
    assert run.rounds[4].costs["hidden_entries_error"] == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize("name", ["hidden_mse", NAME])
def test_a_stop_whose_figure_few_measurements_have_is_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Guard, "scores", lambda *_, **__: None)
    run = WithFigures(tmp_path / "r", [0, 0])
    guard, stop = Guard(measurements=64, hidden=0.2), Plateau(name, patience=1)
    run.settings = replace(run.settings_of(1), guard=guard, stop=stop)
    run.fit()
    said = " ".join(capsys.readouterr().err.split())
    assert ("hidden, and em.stop has no effect" in said) is (name == "hidden_mse")
    assert "hold more out, by a larger dataset.heldout" in said


def test_what_learned_from_the_init_is_no_measure_of_what_learns_from_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard lets round 3 through; round 4 is worse, also than round 2, and 5 and 6 better."""
    means = iter([5, 6, 5.1, 4, 5.5, 5.4, 5.3])
    monkeypatch.setattr(
        Guard, "scores", lambda *_, **__: {ENTRIES: torch.tensor(figure(next(means))).double()}
    )
    run = WithFigures(tmp_path / "r", [0] * (ROUNDS + 1))
    guard, stop = Guard(measurements=64, hidden=0.2), Plateau("hidden_entries", patience=2)
    run.settings = replace(run.settings, guard=guard, stop=stop)
    assert run.fit().data.state.round == ROUNDS
    assert [round.costs["redrawn"] for round in run.rounds] == [1, 0, 0, 1, 1, 1, 1]
    assert run.data.state.improved[0] == ROUNDS


def test_other_figures_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"em\.stop\.figure must be one of hidden_mse, hidden_entries"
    ):
        Plateau("residual_chi2", patience=2)
    with pytest.raises(UserError, match=r"em\.stop\.patience must be"):
        Plateau("hidden_entries", patience=0)


@pytest.mark.parametrize("patience", [ROUNDS - 1, ROUNDS])
def test_a_stop_that_has_no_effect_is_not_said_to_end_the_run(
    patience: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(SmallRun(tmp_path / "r", rounds=ROUNDS).settings, restart=False)
    check_stop(replace(settings, stop=Plateau(NAME, patience=patience)), 16, "")
    said = " ".join(capsys.readouterr().err.split())
    assert ("em.stop has no effect" in said) == (patience == ROUNDS)
    assert ("em.stop may end EM before" in said) == (patience < ROUNDS)
