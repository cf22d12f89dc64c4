"""`diffem watch`: what a run is doing, from its directory alone."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from in_process import run_here
from rich.console import Console

from diffem.cli import watch
from diffem.report.position import Position, read_position
from diffem.report.record import read_record
from diffem.storage.lock import lock_folder, unlock_folder

STEPS = 6  # of an M-step


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_here(
        tmp_path_factory.mktemp("runs") / "run", "em.rounds=2", f"em.steps_per_round={STEPS}"
    )


@pytest.fixture
def running(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A run that is being written, of which rounds 0 and 1 are done."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "reconstructions" / "round_002")
    journal = json.loads((run / "rounds.json").read_text())
    journal["rounds"] = journal["rounds"][:2]
    (run / "rounds.json").write_text(json.dumps(journal))
    cut_log(run, STEPS + 3)
    lock_folder(run, "run_dir")
    yield run
    unlock_folder(run)


def cut_log(run: Path, steps: int) -> None:
    """Leaves what metrics.jsonl held after a number of optimiser steps and round 1."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line.get("round", 0) < 2 and line.get("step", 0) < steps]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))


def printed(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns what the command prints, without a terminal."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    watch.main([str(run)])
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    return capsys.readouterr().out


def row(run: Path, k: int) -> dict[str, Any]:
    return json.loads((run / "rounds.json").read_text())["rounds"][k]


def position(run: Path) -> Position:
    return read_position(read_record(run))


def test_a_finished_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(finished, capsys)
    assert "Finished: round 2 of 2" in shown and "held-out" in shown
    assert f"{row(finished, 2)['psnr']:.2f}" in shown


def test_an_m_step(running: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, last = position(running), row(running, 1)
    assert (found.stage, found.done, found.total) == ("round 2 of 2, M-step", 3, STEPS)
    assert found.rate == pytest.approx(STEPS / last["m_step_seconds"])
    # Half of the M-step and the E-step are to come, of the last round.
    assert found.left == pytest.approx(last["m_step_seconds"] / 2 + last["e_step_seconds"])
    shown = printed(running, capsys)
    assert "Running: round 2 of 2, M-step, 3 of 6 steps; loss " in shown
    assert re.search(r"steps/s in the last round; about \d+ s of rounds left", shown)
    assert f"{last['psnr']:.2f}" in shown and "held-out" not in shown


def test_reconstructions_that_were_kept_to_the_end_are_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that goes on it is not known yet."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("summary.json", "rounds.json"):
        held = json.loads((run / name).read_text())
        for k, held_row in enumerate(held["rounds"]):
            held_row |= {"redrawn": float(k == 0), "hidden_entries": 0.5 + 0.1 * k}
        (run / name).write_text(json.dumps(held))
    said = "the reconstructions of round 0 were kept to the end"
    assert said in printed(run, capsys)
    (run / "summary.json").unlink()
    assert said not in printed(run, capsys)


def test_over_relaxed_rounds_are_named(running: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their χ² stood in the table beside that of samples, as if the two compared."""
    for draws, said in ((1, False), (2, True)):
        journal = json.loads((running / "rounds.json").read_text())
        journal["rounds"][1]["draws"] = draws
        (running / "rounds.json").write_text(json.dumps(journal))
        assert ("over-relaxed (em.relax): round 1; recon" in printed(running, capsys)) is said


def test_a_round_that_has_logged_no_step_yet(running: Path) -> None:
    cut_log(running, STEPS)
    found = position(running)
    assert (found.stage, found.done, found.loss) == ("round 2 of 2, M-step", 0, None)


def test_an_e_step(running: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = running / "reconstructions"
    (rounds / "round_002").mkdir()
    shutil.copy(rounds / "round_001" / "chunk_00000.npy", rounds / "round_002")
    (rounds / "round_002" / ".chunk_00001.npy.tmp").touch()  # one that is being written
    found, last = position(running), row(running, 1)
    assert (found.stage, found.done, found.total) == ("round 2 of 2, E-step", 1, 3)
    assert found.left == pytest.approx(last["e_step_seconds"] * 2 / 3)
    assert "round 2 of 2, E-step, 1 of 3 chunks" in printed(running, capsys)


def test_the_prior_and_what_follows(running: Path) -> None:
    config = running / ".hydra" / "config.yaml"
    with (running / "metrics.jsonl").open("a") as log:
        log.write('{"step": 19, "prior/loss": 0.5}\n')
    assert position(running) == Position("prior", "steps", 20, None, loss=0.5)
    cut_log(running, 2 * STEPS)
    config.write_text(config.read_text().replace("  rounds: 2\n", "  rounds: 1\n"))
    assert position(running).stage == "evaluation"  # prior=null


def test_a_run_without_a_round(running: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rounds.json", "metrics.jsonl"):
        (running / name).unlink()
    shutil.rmtree(running / "reconstructions")
    assert "Running: round 0 of 2, init" in printed(running, capsys)


@pytest.mark.parametrize(("rounds", "left"), [(0.4, 1), (1.4, 1), (2.4, 2), (2.6, 3), (9, 8)])
def test_a_budget_ends_the_rounds(rounds: float, left: int, running: Path) -> None:
    """The loop ends where one more round would miss the limit further (EMSettings.exhausted)."""
    config, times = running / ".hydra" / "config.yaml", ("e_step_seconds", "m_step_seconds")
    spent = sum(row(running, k)[key] for k in (0, 1) for key in times)
    last = sum(row(running, 1)[key] for key in times)
    text = config.read_text().replace("  rounds: 2\n", "  rounds: 9\n")
    config.write_text(text.replace("  seconds: null", f"  seconds: {spent + rounds * last}"))
    half = row(running, 1)["m_step_seconds"] / 2  # of the M-step under way
    assert position(running).left == pytest.approx(left * last - half)


def test_live_until_the_run_ends(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, height=50)
    monkeypatch.setattr(watch, "plain_console", lambda: console)
    monkeypatch.setattr(watch.time, "sleep", lambda _: unlock_folder(running))
    watch.main([str(running)])
    assert "round 2 of 2, M-step" in screen.getvalue()
    assert "Ended without a message after round 1 of 2" in screen.getvalue()


def test_ctrl_c_ends_it(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(watch, "plain_console", lambda: console)
    monkeypatch.setattr(watch.time, "sleep", interrupt)
    watch.main([str(running)])


@pytest.mark.parametrize("width", [20, 30, 80])
def test_a_narrow_terminal_has_fewer_columns_and_whole_numbers(
    width: int, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = printed(finished, capsys)
    table = [line for line in shown.splitlines() if line.startswith(("│", "┃", "┏", "└"))]
    assert table and all(len(line) <= width for line in table)
    last = row(finished, 2)
    cells = [cell.strip() for line in table for cell in line.strip("│┃").split("│")]
    assert {"0", "1", "2", f"{last['psnr']:.2f}"} <= set(cells)
    assert ("too narrow for" in shown) == (width < 80)


def test_mistakes_are_a_sentence(
    running: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(run: Path) -> str:
        with pytest.raises(SystemExit) as raised:
            watch.main([str(run), "--once"])
        assert raised.value.code == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    assert "nothing is no folder; give a run directory" in error(tmp_path / "nothing")
    assert "holds no run; give a run directory" in error(tmp_path)
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "posterior.safetensors").touch()
    assert "is the folder of an export, which is not a run; give" in error(exported)
    (running / "checkpoints").mkdir(exist_ok=True)
    (running / "checkpoints" / "posterior.safetensors").touch()
    assert "checkpoints holds no run; give a run directory" in error(running / "checkpoints")
    (running / ".hydra" / "config.yaml").write_text("[")
    assert "config.yaml is damaged" in error(running)


@pytest.mark.parametrize("content", ["", '{"rounds": [', "{}", '"seed": "zero"'])
def test_a_summary_that_is_damaged_is_said_to_be(
    content: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that is a JSON object, whose values are of other types."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    file = run / "summary.json"
    if content.startswith('"'):
        content = file.read_text().replace('"seed": 0', content)
    file.write_text(content)
    shown = printed(run, capsys)
    assert f"Finished: round 2 of 2. {file} is damaged, and what it holds is not shown" in shown
    assert f"move it away, and diffem train resume={run} writes it again" in shown


def test_a_journal_that_is_damaged_leaves_the_log(
    running: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = json.loads((running / "rounds.json").read_text())
    for damaged in ({**held, "metrics": []}, {**held, "metrics": {"psnr": {"no": 1}}}):
        (running / "rounds.json").write_text(json.dumps(damaged))
        assert "round 2 of 2, M-step, 3 of 6 steps" in printed(running, capsys)
    (running / "rounds.json").write_text('{"rounds": [')
    assert "round 2 of 2, M-step, 3 of 6 steps" in printed(running, capsys)
