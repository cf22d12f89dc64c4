"""A run directory: resumed after a kill, by the same configuration, by one process."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ROOT, SHORT, train, weights
from omegaconf import OmegaConf

from diffem import __version__
from diffem.runtime.errors import UserError
from diffem.storage.run_dir import check_space, check_version, open_run, save_config

SMALL = (*SHORT, "metric.heldout=4", "metric.prior=4", "metric.subset=4", "metric.samples=2")


def killed_at(path: Path, run_dir: Path, *overrides: str) -> None:
    """Starts a run and kills it as soon as a file is there."""
    with (run_dir.with_suffix(".log")).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *SMALL, *overrides, f"run_dir={run_dir}"],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        end = time.monotonic() + 120
        while not path.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert path.exists(), run_dir.with_suffix(".log").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = train(*SMALL, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.parametrize(
    "file",
    [
        "reconstructions/round_001/chunk_00002.npy",
        pytest.param("reconstructions/round_000/chunk_00001.npy", marks=pytest.mark.kill),
        pytest.param("checkpoints/last.ckpt", marks=pytest.mark.kill),
        pytest.param("checkpoints/prior.ckpt", marks=pytest.mark.kill),
    ],
)
def test_a_killed_run_is_resumed(file: str, whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    killed_at(run_dir / file, run_dir)
    done = train(f"resume={run_dir}")  # no other word: it knows what it was given
    assert done.returncode == 0, done.stderr
    assert f"resuming {run_dir}" in done.stderr
    assert weights(run_dir) == weights(whole)
    for name in ("last", "prior"):
        # The same bytes of weights, whatever else the checkpoints hold.
        a, b = (train_state(d / "checkpoints" / f"{name}.ckpt") for d in (run_dir, whole))
        assert a == b
    for name in ("posterior", "prior"):
        a, b = (d / "checkpoints" / f"{name}.safetensors" for d in (run_dir, whole))
        assert a.read_bytes() == b.read_bytes()
    rows = json.loads((run_dir / "summary.json").read_text())
    expected = json.loads((whole / "summary.json").read_text())
    assert [r["psnr"] for r in rows["rounds"]] == [r["psnr"] for r in expected["rounds"]]
    assert rows["final"] == expected["final"]
    assert losses(run_dir) == losses(whole)  # each step once
    assert rounds_logged(run_dir) == rounds_logged(whole) == ([0, 1, 2], [0, 1, 2])


def losses(run_dir: Path) -> list[dict[str, float]]:
    """Returns the lines of metrics.jsonl that are of a step."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "round" not in line]


def rounds_logged(run_dir: Path) -> tuple[list[int], list[int]]:
    """Returns the rounds in metrics.jsonl and in rounds.json."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    held = json.loads((run_dir / "rounds.json").read_text())["rounds"]
    return [int(line["round"]) for line in lines if "round" in line], [r["round"] for r in held]


def train_state(path: Path) -> dict[str, list[float]]:
    """Returns a checkpoint's weights as plain numbers."""
    from diffem.storage.checkpoint import load_checkpoint

    state = load_checkpoint(path)["state_dict"]
    return {name: value.flatten().tolist() for name, value in state.items()}


def test_a_finished_run(whole: Path) -> None:
    before = (whole / "summary.json").stat().st_mtime_ns
    refused = train(*SMALL, f"run_dir={whole}")
    assert refused.returncode == 1
    assert "holds a finished run; choose another run_dir, or a larger em.rounds" in refused.stderr
    auto = train(*SMALL, f"run_dir={whole}", "resume=auto")
    assert auto.returncode == 0 and "is finished already" in auto.stderr
    assert (whole / "summary.json").stat().st_mtime_ns == before


def test_another_configuration_is_refused_by_its_keys(whole: Path) -> None:
    done = train(*SMALL, "corruption.rho=0.25", "em.chunk_size=50", f"run_dir={whole}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "corruption.rho was 0.5 and is 0.25, em.chunk_size was 60 and is 50" in done.stderr
    fewer = train(*SMALL, "em.rounds=1", f"run_dir={whole}")
    assert "em.rounds may only grow where a run is resumed: it was 2, got 1" in fewer.stderr


def test_a_run_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = train(*SMALL, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "is being written by another process" in done.stderr


def test_more_rounds_and_other_loggers_resume_and_are_recorded(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert train(*SMALL, "em.rounds=1", f"run_dir={run_dir}").returncode == 0
    done = train(f"resume={run_dir}", "em.rounds=2", "logger=csv")
    assert done.returncode == 0, done.stderr
    assert weights(run_dir) == weights(whole)
    # The prior is that of the last round, and so are its lines.
    held, expected = (d / "checkpoints" / "prior.safetensors" for d in (run_dir, whole))
    assert held.read_bytes() == expected.read_bytes()
    assert losses(run_dir) == losses(whole)
    assert rounds_logged(run_dir) == ([0, 1, 2], [0, 1, 2])
    header = (run_dir / "csv" / "version_0" / "metrics.csv").read_text().split(",")
    assert {"m_step/loss", "round/psnr", "prior/loss"} < set(header)
    assert len(json.loads((run_dir / "summary.previous.json").read_text())["rounds"]) == 2
    line = json.loads((run_dir / ".hydra" / "resumed.jsonl").read_text())
    assert line["changed"]["em.rounds"] == [1, 2] and "logger.csv.name" in line["changed"]


def test_nothing_to_resume(tmp_path: Path) -> None:
    done = train(f"resume={tmp_path / 'none'}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "no run is there; give a run directory, or auto" in done.stderr


@pytest.mark.parametrize(
    ("header", "by"),
    [
        ("", "diffem 0.1 or older"),
        ("# diffem 0.1.7\n", "diffem 0.1.7"),
        ("# diffem 10.2.0\n", "diffem 10.2.0"),
    ],
)
def test_a_run_of_another_version_is_refused(header: str, by: str, tmp_path: Path) -> None:
    """Before its overrides are composed: they may name choices that are gone."""
    folder = tmp_path / "run" / ".hydra"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"{header}seed: 0\n")
    (folder / "overrides.yaml").write_text("- corruption=gone\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")}
    for given in ("resume", "run_dir"):
        done = train(f"{given}={tmp_path / 'run'}")
        assert done.returncode == 1
        assert done.stderr == (
            f"error: {tmp_path / 'run'} was written by {by} and this is diffem {__version__}; "
            "resume it with the version that wrote it, or start a new run in another run_dir\n"
        )
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_run_of_this_minor_version_is_resumed(tmp_path: Path) -> None:
    folder = tmp_path / ".hydra"
    folder.mkdir()
    check_version(tmp_path)
    save_config(OmegaConf.create({"seed": 0}), folder / "config.yaml")
    check_version(tmp_path)
    minor = ".".join(__version__.split(".")[:2])
    (folder / "config.yaml").write_text(f"# diffem {minor}.99rc1\nseed: 0\n")
    check_version(tmp_path)


def test_a_kill_before_the_configuration_was_saved_holds_nothing_up(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    cfg = OmegaConf.create({"run_dir": None})
    overrides = {"task": ["seed=0"]}
    hydra = OmegaConf.create({"runtime": {"output_dir": str(tmp_path)}, "overrides": overrides})
    assert open_run(cfg, hydra) == tmp_path and cfg.run_dir == str(tmp_path)
    assert (tmp_path / ".hydra" / "config.yaml").read_text().startswith(f"# diffem {__version__}")


def test_too_small_a_disk_is_reported_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffem.storage.run_dir.free_bytes", lambda _: 100_000)
    check_space(tmp_path, 40_000, rounds=2)
    with pytest.raises(UserError, match=r"of 3 rounds need 0\.00012 GB and 0\.0001 GB are free"):
        check_space(tmp_path, 40_000, rounds=3)
    held = tmp_path / "reconstructions" / "round_000"
    held.mkdir(parents=True)
    (held / "chunk_00000.npy").write_bytes(bytes(40_000))
    check_space(tmp_path, 40_000, rounds=3)  # a third of it is there already
