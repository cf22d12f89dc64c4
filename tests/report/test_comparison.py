"""The report of a comparison: its table, its curves and its page."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from html_page import check_page

from diffem.metric import (
    PSNR,
    SSIM,
    Evaluation,
    Extractor,
    Metric,
    ResidualChi2,
    Score,
    describe_scores,
)
from diffem.report.comparison import mean_and_deviation, table, write_comparison
from diffem.report.curves import mean_points
from diffem.report.pictures import save_pictures, save_prior_pictures
from diffem.runtime.errors import UserError


class Described(Extractor):
    """A feature space of which only the descriptions are used."""

    def __init__(self, *scores: Score) -> None:
        super().__init__()
        self.described = list(scores)

    @property
    def scores(self) -> list[Score]:
        return self.described


def evaluation() -> Evaluation:
    """The metrics of the default run, a classifier and the FID."""
    metrics: dict[str, Metric] = {"psnr": PSNR(), "ssim": SSIM(), "chi2": ResidualChi2()}
    fid = Score("fid", "FID", better="lower")
    classifier = Score("fd_classifier", "FD classifier", better="lower")
    features = [Described(classifier), Described(fid)]
    return Evaluation(8, 8, 8, 8, metrics=metrics, features=features)


METRICS = describe_scores(evaluation().scores)


def summary(seed: int, psnr: float, **final: Any) -> dict[str, Any]:
    """A summary as train.py writes it, with what the table reads."""
    scores = {"psnr": psnr - 2, "psnr_mean": psnr, "ssim": 0.5, "residual_chi2": 1.0}
    row = {"e_step_seconds": 1.0, "m_step_seconds": 2.0, "residual_chi2": 0.9}
    return {
        "seed": seed,
        "wall_seconds": 10.0,
        "metrics": METRICS,
        "rounds": [{"round": k, "psnr_mean": psnr - 1 + k, **row} for k in range(2)],
        "final": {**scores, "init_psnr_mean": 17.0 + seed, "prior": None, **final},
    }


def counted(seed: int, psnr: float, **final: Any) -> dict[str, Any]:
    """A summary with all that later versions add."""
    found = summary(seed, psnr, **final)
    for k, row in enumerate(found["rounds"]):
        row |= {"nfe": 2_500_000 * k, "optimizer_steps": 500 * k}
        row["diversity"] = 0.1 if k else None
        row["estimate"] = {"sigma": 1.02 + k, "noise": 0.05}
    return found


def column(rows: list[list[str]], title: str) -> list[str]:
    """Returns the cells below a title."""
    i = rows[0].index(title)
    return [row[i] for row in rows[1:]]


def test_table_holds_mean_and_deviation_over_seeds() -> None:
    runs = {"a": {0: summary(0, 20.0), 1: summary(1, 22.0)}, "b_c": {0: summary(0, 19.0), 1: None}}
    rows = table(runs)
    assert rows[0][:2] == ["row", "PSNR of mean (dB)"]
    assert rows[1][:2] == ["a", "21.00 ± 1.41"] and rows[1][-1] == "2"
    assert rows[2][:2] == ["b_c", "19.00"] and rows[2][-1] == "1 (1 failed)"
    assert rows[3][:2] == ["posterior mean of the init", "17.50 ± 0.71"]
    assert column(rows, "E+M time (s)")[:2] == ["6.0 ± 0.0", "6.0"]
    assert column(rows, "residual χ²")[1] == "1.000"
    assert mean_and_deviation([1.0], Score("a", "a", digits=2)) == "1.00"


def test_columns_that_no_run_has_are_left_out() -> None:
    titles = table({"a": {0: summary(0, 20.0)}})[0]
    assert not {"Sinkhorn", "FID", "diversity", "optimiser steps", "estimated sigma"} & set(titles)
    later = {"fd_classifier": 1.23456, "fid": 5.88, "posterior_std": 0.9, "diversity": 0.2}
    prior = {"frechet_pixels": 1.1, "fd_classifier": 2.2, "fid": 3.3}
    runs = {"a": {0: summary(0, 20.0)}, "b": {0: counted(0, 21.0, prior=prior, **later)}}
    rows = table(runs, details=True)
    expected = {
        "FD classifier": "1.235",
        "FID": "5.880",
        "diversity": "0.200",
        "posterior std": "0.900",
        "prior FD (pixels)": "1.100",
        "prior FD classifier": "2.200",
        "prior FID": "3.300",
        "estimated sigma": "2.020",
        "estimated noise": "0.050",
        "optimiser steps": "500",
        "NFE (M)": "2.50",
    }
    for title, text in expected.items():
        assert column(rows, title)[:2] == ["–", text], title
    read = set(table(runs)[0])
    assert "diversity" not in read and {"FID", "posterior std", "NFE (M)"} <= read


def test_the_gap_between_a_sample_and_the_mean_stands_beside_that_of_the_posterior() -> None:
    runs = {"a": {0: summary(0, 20.0) | {"samples": 4}}}
    title = "gap (dB; true posterior: 2.04)"  # 10 log10(2 / (1 + 1/4))
    assert table(runs)[0][1:4] == ["PSNR of mean (dB)", "PSNR (dB)", title]
    assert column(table(runs), title)[0] == "2.00"
    runs["b"] = {0: summary(0, 21.5) | {"samples": 8}}
    assert column(table(runs), "gap (dB)")[:2] == ["2.00", "2.00"]


def test_the_best_of_those_who_compete_is_bold() -> None:
    runs = {
        "a": {0: summary(0, 20.0, fd_classifier=2.0)},
        "b": {0: summary(0, 21.0, fd_classifier=3.0)},
        "ceiling": {0: summary(0, 30.0, fd_classifier=1.0) | {"clean_images": True}},
    }
    rows = table(runs, bold=True)
    assert column(rows, "PSNR of mean (dB)")[:3] == ["20.00", "**21.00**", "30.00"]
    assert column(rows, "FD classifier")[:3] == ["**2.000**", "3.000", "1.000"]
    assert rows[3][0] == "ceiling †"
    # Neither a larger nor a smaller χ² is better.
    assert "**" not in "".join(column(rows, "residual χ²") + column(rows, "E+M time (s)"))
    assert "**" not in str(table({"a": runs["a"]}, bold=True))
    header, first, _ = table({"row": runs["b"], "a": runs["a"]}, bold=True)[:3]
    assert "**" not in "".join(header) and "**21.00**" in first  # of a row with the header's name


def test_a_metric_of_one_run_is_a_column_and_a_curve(tmp_path: Path) -> None:
    """Title, digits and direction are those that the run wrote; no list in the report names it."""
    new = describe_scores([Score("mae", "MAE", digits=4, better="lower")])
    runs: dict[str, dict[int, dict[str, Any] | None]] = {}
    for row, value in (("a", 0.12345), ("b", 0.2)):
        runs[row] = {0: summary(0, 20.0, mae=value) | {"metrics": METRICS | new}}
    runs["c"] = {0: summary(0, 20.0)}
    rows = table(runs, bold=True)
    assert column(rows, "MAE")[:3] == ["**0.1235**", "0.2000", "–"]
    assert len(write_comparison(tmp_path, runs, "")) == 6


def test_runs_that_describe_no_scores_are_refused(tmp_path: Path) -> None:
    old = summary(0, 20.0)
    del old["metrics"]
    with pytest.raises(UserError, match=r"were written by diffem 0\.1"):
        write_comparison(tmp_path, {"a": {0: old}}, "")
    assert not list(tmp_path.iterdir())


def test_gaussian_means_of_different_channels_are_a_column() -> None:
    other = summary(0, 21.0, init_psnr_mean=12.0)
    rows = table({"a": {0: summary(0, 20.0)}, "b": {0: other}})
    assert column(rows, "posterior mean of the init (dB)") == ["17.00", "12.00"]


def test_comparison_is_written_in_three_formats(tmp_path: Path) -> None:
    runs = {"a_b": {0: summary(0, 20.0), 1: summary(1, 22.0)}, "c": {0: None, 1: None}}
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "seed_0.log").write_text("error: it failed")
    files = write_comparison(tmp_path, runs, "em.rounds=1 <b>")
    assert all(path.stat().st_size > 0 for path in files)
    assert not (tmp_path / "nfe.png").exists()
    with (tmp_path / "table.csv").open() as file:
        assert list(csv.reader(file)) == table(runs, details=True)
    assert r"a\_b & 21.00 $\pm$ 1.41 &" in (tmp_path / "table.tex").read_text()
    assert "| a_b | 21.00 ± 1.41 |" in (tmp_path / "table.md").read_text()
    page = check_page(tmp_path / "report.html")
    assert "<h1>em.rounds=1 &lt;b&gt;</h1>" in page.source
    assert "c, seed 0: Ended without a message before the first round was done" in page.text
    assert {"href": "c/seed_0.log"} in page.all("a")


def written(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Writes a run's summary and pictures, and returns the summary."""
    (folder / "figures").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    x = torch.full((2, 3, 1, 8, 8), summary["seed"] / 10)
    save_pictures(folder / "figures" / "heldout.npz", x, x[0], None)
    save_prior_pictures(folder / "figures" / "prior.npz", x[0], None)
    return summary


def test_the_page_shows_each_rows_first_finished_seed(tmp_path: Path) -> None:
    runs = {seed: written(tmp_path / f"a/seed_{seed}", summary(seed, 20.0)) for seed in (5, 2)}
    write_comparison(tmp_path, {"a": {0: None, **runs}}, "")
    page = check_page(tmp_path / "report.html")
    assert "default run" in page.text and "a, seed 0: " in page.text
    heldout, prior = page.images()
    assert heldout.getpixel((0, 0))[0] == prior.getpixel((0, 0))[0] == round(127.5 * 1.5)  # type: ignore[index]


def test_the_page_s_curves_are_means_over_seeds(tmp_path: Path) -> None:
    runs = {s: written(tmp_path / f"a/seed_{s}", counted(s, 20.0 + 2 * s)) for s in (0, 1)}
    short = summary(0, 22.0)
    short["rounds"] = short["rounds"][:1]
    rows = {"a": runs, "b": {0: written(tmp_path / "b/seed_0", short)}}
    write_comparison(tmp_path, rows, "")
    labels = [a.get("aria-label") for a in check_page(tmp_path / "report.html").all("svg")]
    assert "PSNR of mean (dB) over round: a: 20.00 to 21.00; b: 21.00 to 21.00" in labels
    assert not any("over NFE" in label for label in labels if label)  # b has not counted them


def test_settings_that_differ_are_written_as_a_command_takes_them(tmp_path: Path) -> None:
    runs = {}
    for row, stop in (("a", "null"), ("b", "{patience: 3}")):
        runs[row] = {0: written(tmp_path / row / "seed_0", summary(0, 20.0))}
        (tmp_path / row / "seed_0" / ".hydra").mkdir()
        config = tmp_path / row / "seed_0" / ".hydra" / "config.yaml"
        config.write_text(f"em: {{stop: {stop}, restart: {row == 'a'}}}")
    write_comparison(tmp_path, runs, "")
    page = (tmp_path / "report.html").read_text()
    assert all(f">{value}<" in page for value in ("null", "true", "false", "3"))
    assert not any(f">{value}<" in page for value in ("None", "True", "False"))


def test_rows_with_over_relaxed_rounds_are_named(tmp_path: Path) -> None:
    """Their χ² stood in one chart with that of samples, as if the two compared."""
    relaxed = summary(1, 21.0)
    relaxed["rounds"][1]["draws"] = 2
    plain = {0: written(tmp_path / "a/seed_0", summary(0, 20.0))}
    for runs, said in (
        ({"a": plain}, False),
        ({"a": plain, "b": {1: written(tmp_path / "b/seed_1", relaxed)}}, True),
    ):
        write_comparison(tmp_path, runs, "")
        text = " ".join(check_page(tmp_path / "report.html").text.split())
        assert ("Some rounds are over-relaxed (em.relax) of b; recon" in text) is said


def test_curves_over_network_evaluations_need_all_runs_to_count_them(tmp_path: Path) -> None:
    write_comparison(tmp_path, {"a": {0: counted(0, 20.0)}, "b": {0: counted(0, 21.0)}}, "")
    assert (tmp_path / "nfe.png").stat().st_size > 0
    write_comparison(tmp_path, {"a": {0: counted(0, 20.0)}, "b": {0: summary(0, 21.0)}}, "")
    assert not (tmp_path / "nfe.png").exists()


def test_a_mean_over_seeds_is_of_the_same_rounds() -> None:
    """Where one run lacks a score in a round, its later rounds stay where they are."""
    times = {"e_step_seconds": 1.0, "m_step_seconds": 1.0}
    runs = [
        [{"round": k, "psnr": value, **times} for k, value in enumerate(values)]
        for values in ([10.0, 20.0, 30.0], [None, 22.0, 32.0])
    ]
    assert mean_points(runs, "psnr", "round") == [(1.0, 21.0), (2.0, 31.0)]
    assert mean_points([runs[0], runs[1][:2]], "psnr", "round") == [(1.0, 21.0)]
