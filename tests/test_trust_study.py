"""bench/trust.py: rank correlations by known numbers, and the tables of runs of seconds."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from command import SHORT, run_jobs

from bench.trust import (
    STOP,
    Point,
    Run,
    losses,
    main,
    over_both,
    over_methods,
    over_rounds,
    posterior_mean,
    read_run,
    read_runs,
)
from diffem.cli.comparison import compare
from diffem.cli.launch import quiet
from diffem.cli.study import Study, read_study

PSNRS = (20.0, 22.0, 21.0, 23.0)


def run(
    row: str,
    figures: Sequence[float],
    *,
    psnrs: Sequence[float] = PSNRS,
    given: Sequence[str] = (),
) -> Run:
    pairs = enumerate(zip(figures, psnrs, strict=True), start=1)
    points = [Point(k, {"figure": f}, {"psnr_mean": psnr}) for k, (f, psnr) in pairs]
    return Run(row, 0, ("seed=0", f"run_dir={row}", *given), points)


def test_rank_correlations_are_spearman_s() -> None:
    """1 - 6 Σ d² / (n (n² - 1)) without ties: ranks 1 3 2 4 against 1 2 3 4, Σ d² = 2, n = 4."""
    same, other, equal = run("a", (1, 9, 2, 99)), run("b", (1, 2, 3, 4)), run("c", (1, 1, 1, 1))
    assert over_rounds([same, other, equal], "figure", "psnr_mean") == pytest.approx([1.0, 0.8])
    # The last rounds: figures 99, 4, 1 of PSNRs that are all 23 have no order.
    assert over_methods([same, other, equal], "figure", "psnr_mean") == []
    worse = run("d", (0, 0, 0, 0), psnrs=(1, 1, 1, 1))
    better = run("e", (5, 5, 5, 100), psnrs=(30, 30, 30, 30))
    assert over_methods([same, worse, better], "figure", "psnr_mean") == pytest.approx([1.0])
    assert over_both([run("f", (1, 2, 3, 4), psnrs=(4, 3, 2, 1))], "figure", "psnr_mean") == [-1.0]
    assert over_rounds([same], "another", "psnr_mean") == []


def test_the_mean_of_infinitely_many_samples() -> None:
    """Of 4 samples: an error of 0.04, 20 dB, is 0.01 of the mean's own and 0.12 / 4 of spread."""
    found = posterior_mean(20.0, 0.12**0.5, 4)["psnr_posterior_mean"]
    assert found == pytest.approx(10 * math.log10(4 / 0.01))
    assert posterior_mean(20.0, 0.5, 4) == {}


def test_the_loss_of_a_picked_round() -> None:
    """The figure picks round 2 of 22 dB, where round 4 has 23 dB."""
    restart = run("a", (1, 9, 2, 3), given=("em.restart=true",))
    assert losses([restart], "figure", [restart]) == [1.0]
    given = ("em.restart=true", "em/stop=plateau", "em.stop.patience=1")
    stopped = run("b", (1, 9, 2), psnrs=PSNRS[:3], given=given)
    assert stopped.stopped and not restart.stopped
    # Alone its best round is the picked one; the run without em.stop has the better round 4.
    assert losses([stopped], "figure", [stopped]) == [0.0]
    assert losses([stopped], "figure", [restart, stopped]) == [1.0]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison's folder of two rows and one seed."""
    out = tmp_path_factory.mktemp("runs") / "trust"
    common = (
        *SHORT,
        "corruption=mask",
        "em.rounds=3",
        "em.guard=null",
        "em.relax=null",
        "prior=null",
    )
    rows = {"a": ("method=diffem",), "b": ("method=em_pigdm",)}

    with quiet(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffem.cli.comparison.run_jobs", run_jobs)
        assert not compare(Study(rows, common, seeds=(0,)), out)
    return out


def test_finished_runs_are_read(compared: Path) -> None:
    runs = read_runs(compared)
    rounds = json.loads((compared / "a/seed_0/summary.json").read_text())["rounds"]
    first, _ = runs
    assert [point.number for point in first.points] == [1, 2, 3]
    for point in first.points:
        row = rounds[point.number]
        assert point.truth["psnr_mean"] == row["psnr_mean"] and point.truth["fd"] < 0
        assert point.truth["psnr_posterior_mean"] > row["psnr_mean"]
        assert point.figures["residual_chi2"] == -abs(row["residual_chi2"] - 1)
        assert point.figures["residual_ks"] == -row["residual_ks"]
        assert not {"psnr", "psnr_mean", "frechet_pixels"} & point.figures.keys()


def test_over_relaxed_reconstructions_have_no_distance(compared: Path, tmp_path: Path) -> None:
    """They spread less than samples, whose distances they were ranked among."""
    copy = tmp_path / "copy"
    shutil.copytree(compared, copy)
    path = copy / "a/seed_0/summary.json"
    summary = json.loads(path.read_text())
    for row, draws in zip(summary["rounds"], (1, 1, 2, 1), strict=True):
        row["draws"] = draws
    path.write_text(json.dumps(summary))
    points = read_run(path.parent, "a", 0).points
    assert ["fd" in point.truth for point in points] == [True, False, True]


def test_the_tables(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(compared)])
    said = capsys.readouterr().out
    assert said.startswith("2 runs: a, b\n")
    assert said.count("| figure | dataset.train=200 corruption=mask |") == 10
    assert "Rank correlation with the PSNR of the posterior's mean, over rounds" in said
    assert "Rank correlation with the Fréchet distance, over rounds" in said
    assert "| `residual_ks` | " in said and "`psnr" not in said


def test_a_folder_without_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "holds no comparison; give the --out of a diffem compare" in capsys.readouterr().err


def test_the_study_pairs_each_stopped_run_with_its_em() -> None:
    rows = read_study("trust").rows
    stopped = {row for row, given in rows.items() if "em/stop=plateau" in given}
    assert stopped
    for row in stopped:
        rest = tuple(o for o in rows[row] if not o.startswith(STOP))
        assert rest in rows.values()
