"""The comparison: one table over methods and seeds, which goes on where it stopped."""

import csv
import json
from pathlib import Path

import pytest
from command import SHORT

from diffem.compare import Cell, compare, main
from diffem.report.comparison import spread, table, write_comparison

COMMON = [*SHORT, "prior=null"]


def summary(seed: int, psnr: float) -> dict:
    """A summary as train.py writes it, with what the table reads."""
    final = {"psnr": psnr - 2, "psnr_mean": psnr, "ssim": 0.5, "residual_chi2": 1.0}
    row = {"e_step_seconds": 1.0, "m_step_seconds": 2.0}
    return {
        "seed": seed,
        "wall_seconds": 10.0,
        "rounds": [{"round": k, "psnr_mean": psnr - 1 + k, **row} for k in range(2)],
        "final": {**final, "gaussian_psnr_mean": 17.0 + seed, "prior": None},
    }


def test_table_holds_mean_and_deviation_over_seeds() -> None:
    rows = table({"a": [summary(0, 20.0), summary(1, 22.0)], "b_c": [summary(0, 19.0), None]})
    assert rows[0][:2] == ["method", "PSNR of mean (dB)"]
    assert rows[1][:2] == ["a", "21.00 ± 1.41"] and rows[1][-1] == "2"
    assert rows[2][:2] == ["b_c", "19.00"] and rows[2][-1] == "1 (1 failed)"
    assert rows[3][:2] == ["Gaussian posterior mean", "17.50 ± 0.71"]
    assert spread([1.0]) == "1.00"


def test_comparison_is_written_in_three_formats(tmp_path: Path) -> None:
    runs = {"a_b": [summary(0, 20.0), summary(1, 22.0)], "c": [None, None]}
    files = write_comparison(tmp_path, runs, "em.rounds=1 <b>")
    assert all(path.stat().st_size > 0 for path in files)
    with (tmp_path / "table.csv").open() as file:
        assert list(csv.reader(file)) == table(runs)
    assert r"a\_b & 21.00 $\pm$ 1.41 &" in (tmp_path / "table.tex").read_text()
    assert "| a_b | 21.00 ± 1.41 |" in (tmp_path / "table.md").read_text()
    assert "<h1>em.rounds=1 &lt;b&gt;</h1>" in (tmp_path / "index.html").read_text()


def test_a_comparison_goes_on_where_it_stopped(tmp_path: Path) -> None:
    assert compare(["diffem"], [0], tmp_path, COMMON) == []
    first = (tmp_path / "diffem" / "seed_0" / "summary.json").stat().st_mtime_ns
    unfinished = tmp_path / "em_pnp" / "seed_0" / "reconstructions"
    unfinished.mkdir(parents=True)  # as a killed cell leaves it
    assert compare(["diffem", "em_pnp"], [0], tmp_path, COMMON) == []
    assert (tmp_path / "diffem" / "seed_0" / "summary.json").stat().st_mtime_ns == first
    with (tmp_path / "table.csv").open() as file:
        assert [row[0] for row in csv.reader(file)][1:3] == ["diffem", "em_pnp"]
    page = (tmp_path / "index.html").read_text()
    assert 'src="em_pnp/seed_0/figures/heldout.png"' in page


def test_a_failed_cell_is_marked_and_the_rest_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = compare(["diffem"], [0, 1], tmp_path, [*COMMON, "em.nonsense=1"])
    assert failed == [Cell("diffem", s, tmp_path / "diffem" / f"seed_{s}") for s in (0, 1)]
    error = capsys.readouterr().err
    assert error.count("em.nonsense is not a key of the config") == 2
    assert "0 (2 failed)" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--methods", "magic"], "--methods can be diffem, em_diffpir"),
        (["--methods", "diffem", "--", "em.rounds=2"], "holds a comparison under 'em.rounds=1'"),
    ],
)
def test_mistakes(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "overrides.json").write_text(json.dumps(["em.rounds=1"]))
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path), *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ") and sentence in error
