"""The line of a stage says what was done (issue 11, B11)."""

import io

import pytest
from lightning import LightningModule, Trainer
from rich.console import Console

from diffem.em.callbacks import MStepProgress
from diffem.runtime.progress import bar, progress_bar


def test_a_finished_stage_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("prior", 2, "steps") as advance:
        advance("loss 1")
    assert capsys.readouterr().err.startswith("prior                    2 steps in ")


def test_a_stage_that_is_too_short_to_show_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("prior", 2, "steps", shown=False) as advance:
        advance("loss 1")
    assert capsys.readouterr().err == ""


def test_a_stage_that_was_stopped_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    """It said "5000 steps in 3.9 s" when Ctrl-C ended the first of them."""
    with pytest.raises(KeyboardInterrupt), progress_bar("prior", 5000, "steps") as advance:
        advance()
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FloatingPointError("loss")])
def test_an_m_step_that_was_stopped_has_none(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    callback, trainer, module = MStepProgress(), Trainer.__new__(Trainer), LightningModule()
    callback._bar = progress_bar("round 1  M-step", 5000, "steps")
    callback._advance = callback._bar.__enter__()
    callback.on_exception(trainer, module, error)
    assert capsys.readouterr().err == "" and callback._bar is None
    callback.on_exception(trainer, module, error)  # a second one has nothing to close


def test_a_bar_shows_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    console, now = Console(file=io.StringIO(), force_terminal=True, width=120), [0.0]
    monkeypatch.setattr(console, "get_time", lambda: now[0])
    progress = bar(console)
    task = progress.add_task("round 1  M-step", total=50, unit="steps", note="loss 1")
    for now[0] in (1.0, 2.0, 3.0):  # 5 steps a second
        progress.update(task, advance=5)
    console.print(progress)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "15/50" in shown and "5/s" in shown and "0:00:07" in shown and "loss 1" in shown
