"""The page of a run: at its end, midway, and after it failed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from html_page import Page, check_page
from in_process import run_here
from PIL import Image

from diffem.report.live_page import LivePage
from diffem.report.page import ROUNDS, duration, write_run_page
from diffem.report.pictures import save_pictures, save_prior_pictures
from diffem.report.record import read_record
from diffem.report.summary import RunReport
from diffem.result.result import read_summary
from diffem.runtime.errors import UserError
from diffem.runtime.signals import at_exit
from diffem.storage.status import RunStatus, State, read_status, write_ended

METRICS = "metric.metrics={residual_chi2:{_target_:diffem.metric.ResidualChi2}," + (
    "psnr:{_target_:diffem.metric.PSNR}}"
)
RUN = ("em.rounds=2", "prior={steps:2}", "metric.prior=20", METRICS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_here(tmp_path_factory.mktemp("runs") / "run", *RUN)


def slider(page: Page) -> list[str]:
    """Returns the rounds that the slider has."""
    (found,) = (a for a in page.all("input") if a["type"] == "range")
    return found["data-rounds"].split()


def test_a_finished_run(finished: Path) -> None:
    page = check_page(finished / "report.html")
    assert "Finished: round 2 of 2" in page.text
    assert page.headings == [
        "Verdict",
        "Scores over the rounds",
        "The same measurements, round by round",
        "Several samples of one measurement",
        "Samples of the prior",
        "Cost",
        "Settings",
    ]
    assert slider(page) == ["0", "1", "2"]
    of_rounds = [a for a in page.all("img") if "data-round" in a]
    assert len(of_rounds) == 9  # one sample, their mean and their std
    assert {a["data-round"] for a in of_rounds if "hidden" not in a} == {"2"}
    for title in ("PSNR (dB)", "residual χ²", "diversity", "M-step loss"):
        assert title in page.text
    assert "corruption=denoising" in page.text and "em.rounds=2" in page.text
    assert "torch" in page.text and "E-steps" in page.text
    assert "each above the one that is nearest to it" in page.text


def test_it_is_made_anew_from_the_directory_alone(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    for name in ("report.html", "checkpoints", "reconstructions"):
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = check_page(write_run_page(copy, out=tmp_path / "page.html"))
    assert not (copy / "report.html").exists()
    before = Page(finished / "report.html")
    assert page.all("img") == before.all("img")
    assert page.text.count("\n") == before.text.count("\n")


def test_over_relaxed_rounds_are_named(finished: Path, tmp_path: Path) -> None:
    """Their PSNR stood beside that of samples, as if the two compared."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    summary = json.loads((copy / "summary.json").read_text())
    for draws, said in (([1, 1, 1], ""), ([2, 1, 2], "Over-relaxed (em.relax): round 0, 2;")):
        for row, count in zip(summary["rounds"], draws, strict=True):
            row["draws"] = count
        (copy / "summary.json").write_text(json.dumps(summary))
        text = " ".join(check_page(write_run_page(copy)).text.split())
        assert said in text and ("Over-relaxed" in text) is bool(said)


def test_what_is_missing_is_absent(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "figures")
    summary = json.loads((copy / "summary.json").read_text())
    del summary["metrics"], summary["truth"], summary["unmeasured"], summary["versions"]
    summary["final"] = {"residual_chi2": None, "prior": None}
    (copy / "summary.json").write_text(json.dumps(summary))
    page = check_page(write_run_page(copy))
    assert not page.all("img") and "Samples of the prior" not in page.text
    assert "There is no χ²" in page.text
    for path in copy.rglob("*"):  # damaged, all of it
        if path.is_file() and path.suffix in (".json", ".jsonl"):
            path.write_text("{")
    page = check_page(write_run_page(copy))
    assert "No round has been finished" in page.text
    assert f"Finished. {copy / 'summary.json'} is damaged" in page.text


def test_nothing_in_a_run_directory_is_taken_for_html(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "<b>copy"
    shutil.copytree(finished, copy)
    evil = "</script><script>alert(1)</script><img src='http://elsewhere'>"
    summary = json.loads((copy / "summary.json").read_text())
    summary |= {"dataset": evil, "unmeasured": [evil], "versions": {evil: evil}}
    summary["metrics"]["residual_chi2"]["label"] = evil
    (copy / "summary.json").write_text(json.dumps(summary))
    write_ended(copy, RunStatus(State.FAILED, evil))
    page = check_page(write_run_page(copy))
    assert len(page.all("script")) == 1 and evil in page.text
    assert page.all("img") == Page(finished / "report.html").all("img")


def test_advised_commands_name_a_folder_as_a_shell_takes_it(
    finished: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "my run")
    summary = json.loads((copy / "summary.json").read_text())
    summary["final"] |= {"psnr": None, "psnr_mean": None}
    (copy / "summary.json").write_text(json.dumps(summary))
    assert f"diffem calibrate '{copy}'" in check_page(write_run_page(copy)).text
    (copy / "summary.json").write_text("{")
    with pytest.raises(UserError, match=f"`diffem train resume='{copy}'`"):
        read_summary(copy / "summary.json")


def test_a_folder_s_name_may_hold_bytes_that_are_no_text(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / os.fsdecode(b"caf\xe9"))
    page = check_page(write_run_page(copy))
    assert "caf?" in page.text


def test_scores_that_a_run_describes_are_charts(finished: Path, tmp_path: Path) -> None:
    """No list in the report names them."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    summary = json.loads((copy / "summary.json").read_text())
    summary["metrics"]["coverage_90"] = {"label": "coverage at 90 %", "expected": 0.9}
    for row in summary["rounds"]:
        row["coverage_90"] = 0.5 + 0.1 * row["round"]
    (copy / "summary.json").write_text(json.dumps(summary))
    page = check_page(write_run_page(copy))
    assert "coverage at 90 %" in page.text and "expected: 0.900" in page.text
    labels = [a["aria-label"] for a in page.all("svg")]
    assert "coverage at 90 % over round: 0.500 to 0.700" in labels
    assert "coverage at 90 % over NFE (images through the network): 0.500 to 0.700" in labels


def test_the_newest_calibration_is_shown(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    for k, p in ((1, 0.001), (2, 0.5)):
        content = {
            "round": 2,
            "simulated": {"p": {"all": p}, "factor": {"value": 1.0, "error": 0.1}},
            "verdict": [f"It was found {k} times."],
            "blind_spots": ["what <nobody> sees"],
        }
        (copy / f"calibration_{k:03d}.json").write_text(json.dumps(content))
        Image.new("RGB", (4, 4)).save(copy / "figures" / f"calibration_{k:03d}.png")
    page = check_page(write_run_page(copy))
    assert "It was found 2 times." in page.text and "what <nobody> sees" in page.text
    assert "Calibration" in page.headings and "From calibration_002.json" in page.text
    # A finished run that was given more rounds has another result.
    content = json.loads((copy / "calibration_002.json").read_text())
    (copy / "calibration_002.json").write_text(json.dumps({**content, "round": 1}))
    page = check_page(write_run_page(copy))
    assert "It was found" not in page.text and "From calibration" not in page.text
    assert "The newest calibration is of the result of round 1" in page.text


def failing(*, at: int, error: BaseException) -> Any:
    """Returns a patch under which a run ends after a round was written."""
    on_round = RunReport.on_round

    def fail(self: RunReport, module: Any, round: Any) -> None:
        if round.number == at:
            raise error
        on_round(self, module, round)

    return patch.object(RunReport, "on_round", fail)


@pytest.mark.parametrize(
    ("at", "where"), [(0, "before the first round was done"), (2, "after round 1 of 2")]
)
def test_a_run_that_fails_says_where(at: int, where: str, tmp_path: Path) -> None:
    before = list(at_exit)
    with failing(at=at, error=RuntimeError("it broke <here>")), pytest.raises(RuntimeError):
        run_here(tmp_path / "run", *RUN)
    assert at_exit == before
    page = check_page(tmp_path / "run" / "report.html")
    assert f"Failed {where}" in page.text and "RuntimeError: it broke <here>" in page.text
    assert "diffem train resume=" in page.text
    assert read_status(tmp_path / "run").state is State.FAILED
    again = write_run_page(tmp_path / "run", out=tmp_path / "again.html")
    assert "RuntimeError: it broke <here>" in check_page(again).text
    run_here(tmp_path / "run", *RUN, "resume=auto")
    assert "Finished: round 2 of 2" in check_page(tmp_path / "run" / "report.html").text
    assert not (tmp_path / "run" / "ended.json").exists()


def test_a_run_that_is_stopped_says_so(tmp_path: Path) -> None:
    """What `exit_now` does, up to the end of the process."""

    class Ended(BaseException):
        pass

    on_round = RunReport.on_round

    def stop(self: RunReport, module: Any, round: Any) -> None:
        on_round(self, module, round)
        if round.number == 1:
            for function in at_exit:
                function("stopped by SIGTERM; the same command resumes the run")
            shutil.copy(tmp_path / "run" / "report.html", tmp_path / "stopped.html")
            raise Ended

    with patch.object(RunReport, "on_round", stop), pytest.raises(Ended):
        run_here(tmp_path / "run", *RUN)
    page = check_page(tmp_path / "stopped.html")
    assert "Stopped after round 1 of 2 (stopped by SIGTERM). It can be" in page.text


def test_each_round_writes_the_page(tmp_path: Path) -> None:
    seen: list[str] = []
    write = LivePage.write

    def record(self: LivePage, status: RunStatus) -> None:
        write(self, status)
        page = check_page(tmp_path / "run" / "report.html")
        seen.append(f"{status.state}: {slider(page)[-1] if page.all('img') else '-'}")
        if status.state is State.RUNNING:
            assert 'data-written="' in page.source

    with patch.object(LivePage, "write", record):
        run_here(tmp_path / "run", *RUN)
    assert seen == ["running: -", "running: 0", "running: 1", "running: 2", "finished: 2"]


def test_a_page_that_cannot_be_written_is_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No run ends for its page, and its results are those of another."""
    with patch("diffem.report.live_page.write_run_page", side_effect=OSError("no space")):
        run_here(tmp_path / "a", "em.rounds=1")
    assert capsys.readouterr().err.count("report.html is not written: OSError: no space") == 1
    run_here(tmp_path / "b", "em.rounds=1")
    finals = [json.loads((tmp_path / n / "summary.json").read_text())["final"] for n in "ab"]
    assert finals[0] == finals[1]
    weights = [(tmp_path / n / "checkpoints" / "posterior.safetensors").read_bytes() for n in "ab"]
    assert weights[0] == weights[1]


def test_a_running_run_is_seen_from_elsewhere(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "summary.json").unlink()
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "prior/loss": 0.5}\n')
    assert (
        "Ended without a message after round 2 of 2, then optimiser step 2 of the prior's fit"
        in (check_page(write_run_page(copy)).text)
    )
    with patch("diffem.storage.status.is_locked", return_value=True):
        page = check_page(write_run_page(copy))
    assert "Running when this page was written: round 2 of 2" in page.text


def test_pictures_of_a_result_go_once_more_rounds_are_made(finished: Path, tmp_path: Path) -> None:
    """A finished run that is given more rounds keeps its figures until it has others."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    before = check_page(write_run_page(copy))
    assert "Held-out measurements:" in before.text and "Samples of the prior" in before.text
    (copy / "summary.json").rename(copy / "summary.previous.json")  # as a resumed run does
    page = check_page(write_run_page(copy))
    assert "Training measurements of round 2:" in page.text
    assert "Held-out measurements:" not in page.text and "Samples of the prior" not in page.text


def test_many_rounds_are_thinned(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    summary = json.loads((copy / "summary.json").read_text())
    row = summary["rounds"][-1]
    summary["rounds"] = [{**row, "round": k} for k in range(40)]
    (copy / "summary.json").write_text(json.dumps(summary))
    for k in range(3, 40):
        shutil.copy(copy / "figures" / "round_002.npz", copy / "figures" / f"round_{k:03d}.npz")
    page = check_page(write_run_page(copy))
    shown = slider(page)
    assert len(shown) == ROUNDS and shown[0] == "0" and shown[-1] == "39"
    assert f"{ROUNDS} of the 40 rounds are shown" in page.text


def test_vectors(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    samples = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0))
    (copy / "figures" / "heldout.npz").unlink()
    for k in range(3):
        save_pictures(copy / "figures" / f"round_{k:03d}.npz", samples, samples[0], samples[1])
    save_prior_pictures(copy / "figures" / "prior.npz", samples[0], None)
    page = check_page(write_run_page(copy))
    assert not page.all("img") and slider(page) == ["0", "1", "2"]
    labels = [a.get("aria-label") for a in page.all("svg")]
    assert "Samples of round 1" in labels and "Samples of the prior" in labels


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (1500, "25 min"), (86400, "24.0 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_record_of_nothing(tmp_path: Path) -> None:
    record = read_record(tmp_path)
    assert record.rounds == [] and record.final == {} and record.planned is None
    assert "before the first round" in check_page(write_run_page(tmp_path)).text
