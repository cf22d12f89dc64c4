"""`diffem report`: the page of a run, and one that compares several."""

import json
import shutil
from pathlib import Path

import pytest
from html_page import Page, check_page
from in_process import run_here

from diffem.cli import report
from diffem.cli.report import write_report
from diffem.runtime.errors import UserError
from diffem.storage import entries


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_here(tmp_path_factory.mktemp("runs") / "run", "em.rounds=1")


@pytest.fixture
def copies(run: Path, tmp_path: Path) -> list[Path]:
    """Two runs that differ in a setting, and one that was killed."""
    paths = [tmp_path / name for name in ("first", "second", "killed")]
    for path in paths:
        shutil.copytree(run, path)
    config = paths[1] / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("batch_size: 8", "batch_size: 16"))
    (paths[2] / "summary.json").unlink()
    return paths


def test_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "report.html").unlink()
    report.main([str(copy)])
    assert capsys.readouterr().out == f"wrote {copy / 'report.html'}\n"
    assert "Finished" in check_page(copy / "report.html").text
    written = (copy / "report.html").read_bytes()
    assert write_report([copy], tmp_path / "page.html") == tmp_path / "page.html"
    assert "Finished" in check_page(tmp_path / "page.html").text
    assert (copy / "report.html").read_bytes() == written


def test_without_a_figure_to_compare_rounds_by_there_is_no_best_one(tmp_path: Path) -> None:
    run = run_here(tmp_path / "run", "em.rounds=1", "em.guard=null")
    assert json.loads((run / "summary.json").read_text())["best"] is None


@pytest.mark.parametrize("seconds", [1e308, -1e308])
def test_times_of_any_size_are_drawn_or_left_out(
    seconds: float, run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    summary = json.loads((copy / "summary.json").read_text())
    for i, row in enumerate(summary["rounds"]):
        row |= {"e_step_seconds": seconds * (-1) ** i, "m_step_seconds": seconds}
    (copy / "summary.json").write_text(json.dumps(summary))
    check_page(write_report([copy], tmp_path / "page.html"))


def test_a_folder_that_is_read_only_is_refused_before_the_runs_are_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries.os, "access", lambda path, mode: path != tmp_path)
    monkeypatch.setattr(report, "write_run_page", lambda *_, **__: pytest.fail("it was read"))
    for out in (tmp_path / "page.html", tmp_path / "new" / "page.html"):
        with pytest.raises(UserError, match="cannot be written; choose another file as --out"):
            write_report([run], out)


def test_several_runs(copies: list[Path], tmp_path: Path) -> None:
    page = check_page(write_report(copies, tmp_path / "all.html"))
    assert page.headings[0] == "Scores" and "3 runs" in page.text
    assert "Settings that differ" in page.headings and "em.batch_size" in page.text
    assert f"{copies[2]}, seed 0: Ended without a message after round 1 of 1" in page.text
    lines = [a["aria-label"] for a in page.all("svg") if "aria-label" in a]
    assert all(f"{path}: " in line for path in copies for line in lines if "diversity" in line)
    assert len(page.images()) == 3  # held-out measurements, which the killed one had drawn


def test_a_comparison(copies: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    rows = {}
    for name, path in zip(("a", "b"), copies, strict=False):
        (out / name).mkdir(parents=True)
        path.rename(out / name / "seed_0")
        rows[name] = {"overrides": [], "seeds": [0, 1]}
    (out / "b" / "seed_1.log").write_text("error: it failed\n")
    record = {"overrides": ["em.rounds=1"], "rows": rows}
    (out / "overrides.json").write_text(json.dumps(record))
    page = check_page(write_report([out]))
    assert page.all("title") and "em.rounds=1" in page.text
    assert "1 (1 failed)" in page.text and "b, seed 1: Ended without a message" in page.text
    assert {"href": "b/seed_1.log"} in page.all("a")


def test_a_sweep_groups_its_seeds(copies: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    out.mkdir()
    own = (
        ["em.batch_size=8", "seed=0"],
        ["em.batch_size=16", "seed=0"],
        ["em.batch_size=8", "seed=1"],
    )
    jobs = []
    for i, (path, overrides) in enumerate(zip(copies, own, strict=True)):
        path.rename(out / str(i))
        file = out / str(i) / ".hydra" / "overrides.yaml"
        file.write_text(json.dumps(["em.rounds=1", *overrides]))
        jobs.append({"number": i, "overrides": overrides, "run_dir": f"/elsewhere/{i}"})
    for known in (False, True):  # while it runs, and when it has ended
        if known:
            (out / "sweep.json").write_text(json.dumps(jobs))
        page = check_page(write_report([out]))
        assert "Sweep sweep" in page.text
        (table, *_) = (a for a in page.all("div") if a.get("aria-label") == "Scores of the rows")
        assert table and "em.batch_size=8, seed 1: Ended without a message" in page.text
        assert "1 (1 failed)" in page.text


def test_mistakes_are_a_sentence(copies: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --out FILE"):
        write_report(copies)
    with pytest.raises(UserError, match="holds no run, comparison or sweep"):
        write_report([tmp_path / "nothing"])
    with pytest.raises(UserError, match="nothing holds no run; several runs"):
        write_report([copies[0], tmp_path / "nothing"], tmp_path / "page.html")
    again = copies[0] / ".." / copies[0].name
    with pytest.raises(UserError, match="is given more than once; give each run once"):
        write_report([copies[0], again], tmp_path / "page.html")
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine")
    with pytest.raises(UserError, match=r"mine\.html is not a page of diffem"):
        write_report([copies[0]], mine)
    with pytest.raises(UserError, match="is no regular file"):
        write_report([copies[0]], tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        write_report([copies[0]], mine / "page.html")
    assert mine.read_text() == "<p>mine"
    (copies[0] / "report.html").unlink()
    (copies[0] / "report.html").symlink_to(mine)
    with pytest.raises(UserError, match="is a symbolic link"):
        write_report([copies[0]])
    config = copies[1] / ".hydra" / "config.yaml"
    config.write_text(f"# diffem 0.1.0\n{config.read_text()}")
    with pytest.raises(UserError, match=r"was written by diffem 0\.1\.0"):
        write_report([copies[1]])


@pytest.mark.parametrize("value", ["<script>alert(1)</script>", [1]])
def test_summaries_of_other_types_are_left_out(
    value: object, copies: list[Path], tmp_path: Path
) -> None:
    file = copies[0] / "summary.json"
    summary = file.read_text()
    for place in (
        *("seed", "wall_seconds", "metrics", "unmeasured", "truth", "rounds", "final"),
        *("metrics.psnr", "metrics.psnr.digits", "metrics.psnr.expected"),
        *("final.psnr", "final.prior"),
    ):
        damaged = json.loads(summary)
        *above, last = place.split(".")
        node = damaged
        for key in above:
            node = node[key]
        node[last] = value
        file.write_text(json.dumps(damaged))
        for paths in copies[:1], copies[:2]:
            page = write_report(paths, tmp_path / "page.html").read_text()
            assert "<script>alert(1)" not in page


def test_numbers_that_no_float_holds_are_shown_as_infinity(
    copies: list[Path], tmp_path: Path
) -> None:
    file = copies[0] / "summary.json"
    for place in ("wall_seconds", "samples", "best", "final", "rounds"):
        held = json.loads(file.read_text())
        for node in held["rounds"] if place == "rounds" else [held.get(place)]:
            if isinstance(node, dict):
                numbers = [k for k, v in node.items() if isinstance(v, float | int)]
                node.update(dict.fromkeys(set(numbers) - {"round"}, 10**400))
            else:
                held[place] = 10**400
        file.write_text(json.dumps(held))
        for paths in copies[:1], copies[:2]:
            write_report(paths, tmp_path / "page.html")
    assert "inf" in (tmp_path / "page.html").read_text()


def test_a_number_of_digits_is_no_truth_value(copies: list[Path], tmp_path: Path) -> None:
    file = copies[0] / "summary.json"
    held = json.loads(file.read_text())
    held["metrics"]["psnr"]["digits"] = True
    file.write_text(json.dumps(held))
    write_report(copies[:1], tmp_path / "page.html")


def test_rounds_of_other_types_are_left_out(copies: list[Path], tmp_path: Path) -> None:
    file = copies[2] / "rounds.json"
    rounds = file.read_text()
    for key, value in (("round", 1e400), ("round", 2**80), ("psnr", "17"), ("nfe", [1])):
        damaged = json.loads(rounds)
        damaged["rounds"][-1][key] = value
        file.write_text(json.dumps(damaged))
        write_report([copies[2]], tmp_path / "page.html")
    (copies[2] / "metrics.jsonl").write_text('{"round": 1e400}\n{"round": NaN}\n')
    write_report([copies[2]], tmp_path / "page.html")


def test_the_page_of_a_run_is_the_one_that_it_wrote(run: Path, tmp_path: Path) -> None:
    own, again = Page(run / "report.html"), Page(write_report([run], tmp_path / "again.html"))
    assert [n for n, _ in own.elements] == [n for n, _ in again.elements]
