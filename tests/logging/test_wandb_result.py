"""What the end of a run adds to its W&B run, read back from the offline file."""

import json
from pathlib import Path
from typing import Any

import pytest
import wandb
import wandb_file
from command import wait_until
from in_process import run_here
from PIL import Image

from diffem.logging.wandb import WandbLogger
from diffem.storage.status import RunStatus, State, write_ended


def file_of(run_dir: Path) -> Path:
    """Returns the newest file of a run, which W&B's own process has written to its end."""
    file = max(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    wait_until(lambda: wandb_file.exit_code(file) is not None)
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        return run_here(
            tmp_path_factory.mktemp("runs") / "run", "logger=wandb", "logger.wandb.artifacts=true"
        )


def test_runs_are_grouped_by_their_choices(finished: Path) -> None:
    run = wandb_file.run(file_of(finished))
    assert (run.run_group, run.job_type) == ("digits-denoising", "diffem")
    choices = wandb_file.config(file_of(finished))["choices"]
    assert choices["corruption"] == "denoising" and choices["init"] == "mixture"
    assert not any(key.startswith("hydra") for key in choices)


def test_the_final_scores_are_in_the_summary(finished: Path) -> None:
    final = json.loads((finished / "summary.json").read_text())["final"]
    shown = wandb_file.summary(file_of(finished))
    assert shown["final/psnr"] == final["psnr"] and "final/prior" not in shown
    assert shown["final/residual_chi2"] == final["residual_chi2"]


def test_the_rounds_are_a_table(finished: Path) -> None:
    rounds = json.loads((finished / "summary.json").read_text())["rounds"]
    rows = wandb_file.table(file_of(finished), "rounds")
    assert [row["round"] for row in rows] == [0, 1]
    assert [row["psnr"] for row in rows] == [row["psnr"] for row in rounds]
    assert rows[0]["loss"] is None and rows[1]["loss"] == rounds[1]["loss"]


def test_held_out_samples_are_a_table_of_images(finished: Path) -> None:
    rows = wandb_file.table(file_of(finished), "samples")
    assert list(rows[0]) == ["number", "measurement", "sample 1", "sample 2", "mean", "truth"]
    for row in rows:
        for name, image in row.items():
            if name != "number":
                assert image["caption"] == name
                with Image.open(image["path"]) as shown:
                    assert shown.size == (8, 8)


def test_artifacts_are_weights_and_the_last_reconstructions(finished: Path) -> None:
    found = wandb_file.artifacts(file_of(finished))
    assert found["model"] == ["posterior.safetensors"]
    assert "round_001/manifest.json" in found["dataset"]
    assert all(path.startswith("round_001/") for path in found["dataset"])
    # In the run directory: `wandb sync` finds them.
    assert list(finished.glob("wandb/artifacts/staging/*"))


class Run:
    """A run that logs rounds to W&B, as a run with a figure each does."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.rows = run_dir, list[dict[str, Any]]()
        run_dir.mkdir(exist_ok=True)
        metrics = str(run_dir / "metrics.jsonl")
        self.logger = WandbLogger("diffem", str(run_dir), "name", metrics, str(run_dir))
        self.logger.log_hyperparams({"seed": 0})

    def round(self, k: int, **more: Any) -> None:
        self.rows.append({"round": k, "psnr": 20.0 + k, **more})
        (self.run_dir / "rounds.json").write_text(json.dumps({"rounds": self.rows}))
        Image.new("L", (8, 8)).save(self.run_dir / f"round_{k:03d}.png")
        with (self.run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"round": float(k), "round/psnr": 20.0 + k}) + "\n")
        self.logger.log_metrics({})


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_panels_have_captions(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.round(0)
    run.logger.close()
    (row,) = wandb_file.history(file_of(run.run_dir))
    assert row["round/panel/caption"].startswith("round 0: measurement, sample, mean")


def test_a_calibration_is_two_tables_its_numbers_and_its_figure(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.round(0)
    (run.run_dir / "summary.json").write_text(json.dumps({"final": {"psnr": 20.0}}))
    each = {
        "p": {"all": 0.5},
        "histograms": {"pixels": [1, 3]},
        "tarp": {"levels": [0.0, 1.0], "coverage": [0.0, 1.0]},
        "factor": {"value": 1.25, "error": None},
    }
    content = {"round": 0, "simulated": each}
    (run.run_dir / "calibration_001.json").write_text(json.dumps(content))
    (run.run_dir / "figures").mkdir()
    Image.new("L", (8, 8)).save(run.run_dir / "figures" / "calibration_001.png")
    run.logger.close()
    file = file_of(run.run_dir)
    shown = wandb_file.summary(file)
    assert shown["calibration/p/all"] == 0.5 and shown["calibration/factor/value"] == 1.25
    assert shown["calibration/figure"]["caption"] == "calibration_001"
    assert wandb_file.table(file, "calibration_ranks") == [
        {"line": line, "rank": rank, "density": density}
        for line, rank, density in (
            ("pixels", 0.25, 0.5), ("pixels", 0.75, 1.5), ("expected", 0.0, 1.0),
            ("expected", 1.0, 1.0),
        )
    ]  # fmt: skip
    rows = wandb_file.table(file, "calibration_coverage")
    assert [row["line"] for row in rows] == ["TARP", "TARP", "expected", "expected"]


def test_a_collapse_is_one_alert(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.round(0)
    run.round(1, collapse={"diversity": 0.25})
    run.round(2, collapse={"diversity": 0.125})
    run.logger.close()
    assert wandb_file.alerts(file_of(run.run_dir)) == [
        ("Collapse", "round 1: diversity is 0.25 of round 0's")
    ]
    again = Run(tmp_path / "run")  # a process that resumes it logs the lines again
    again.rows = run.rows
    again.round(3, collapse={"diversity": 0.125})
    again.logger.close()
    second = file_of(run.run_dir)
    assert len(wandb_file.history(second)) == 4 and wandb_file.alerts(second) == []


def test_a_job_of_a_wandb_sweep_is_the_sweep_s_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `wandb agent` sets for the job reaches the offline file, from which it is uploaded."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_RUN_ID", "job123")
    wandb.teardown()  # W&B reads them once in a process
    run = Run(tmp_path / "run")
    run.round(0)
    run.logger.close()
    wandb.teardown()
    record = wandb_file.run(file_of(run.run_dir))
    assert (record.sweep_id, record.run_id) == ("sweep123", "job123")


def test_a_run_that_fails_is_an_alert(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.round(0)
    write_ended(run.run_dir, RunStatus(State.FAILED, "the loss at step 7 is nan"))
    run.logger.close()
    file = file_of(run.run_dir)
    assert wandb_file.alerts(file) == [("Run failed", "the loss at step 7 is nan")]
    assert wandb_file.exit_code(file) == 1
    assert [row["round"] for row in wandb_file.table(file, "rounds")] == [0]


@pytest.mark.parametrize("damage", [b"[", b'{"rounds": 3}', b'{"rounds": [3]}'])
def test_what_is_damaged_ends_no_run(
    damage: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run")
    run.round(0)
    (run.run_dir / "rounds.json").write_bytes(damage)
    (run.run_dir / "summary.json").write_bytes(b'{"final": {"psnr": 1.0}}')
    run.logger.close()
    said = capsys.readouterr().err
    assert ("logging to it has ended" in said) == (damage != b"[")
    assert "wandb sync" in said
