"""A run directory: resumed after a kill, by the same configuration, by one process."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import ROOT, SHORT, train, weights
from omegaconf import OmegaConf

from diffem import __version__
from diffem.runtime.errors import UserError
from diffem.storage.atomic import write_record
from diffem.storage.lock import lock_folder, unlock_folder
from diffem.storage.run_dir import (
    check_space,
    check_version,
    open_run,
    resumed_arguments,
    save_config,
)

SMALL = (
    *SHORT,
    "em.restart=true",  # rounds do not depend on how many there are
    *("metric.heldout=4", "metric.prior=4", "metric.subset=4", "metric.samples=2"),
)


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
            "use it with the version that wrote it, or start a new run in another run_dir\n"
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


RESUMABLE = {
    "em": {"rounds": 1, "keep_rounds": None},
    "trainer": {"precision": "32-true", "accelerator": "cpu"},
    "seed": 0,
    "resume": None,
}


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Opens a run directory as the command does, in this process, and unlocks it."""
    run_dir = tmp_path / "run"

    def open_it(precision: str = "32-true", **overrides: object) -> Path:
        run_dir.mkdir(exist_ok=True)
        cfg = OmegaConf.create({"run_dir": None, **RESUMABLE})
        for key, value in overrides.items():
            OmegaConf.update(cfg, key.replace("__", "."), value)
        task = [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]
        hydra = {"runtime": {"output_dir": str(run_dir)}, "overrides": {"task": task}}
        try:
            return open_run(cfg, OmegaConf.create(hydra), precision=precision)
        finally:
            unlock_folder(run_dir)

    yield open_it
    unlock_folder(run_dir)


def test_a_resumed_run_keeps_the_precision_that_it_began_with(
    opened: Callable[..., Path],
) -> None:
    """trainer.precision=auto is another one on another machine."""
    run_dir = opened("bf16-mixed", trainer__precision="auto")
    assert opened("32-true", trainer__precision="auto") == run_dir
    held = OmegaConf.load(run_dir / ".hydra" / "config.yaml")
    assert held.trainer.precision == "bf16-mixed"
    with pytest.raises(UserError, match=r"trainer\.precision"):
        opened(trainer__precision="32-true")


def test_a_precision_that_a_run_began_with_is_checked_on_this_machine(
    opened: Callable[..., Path],
) -> None:
    """auto took 16-mixed of a GPU's run on a machine without one, where it was said to be none."""
    run_dir = opened("32-true", trainer__precision="16-mixed")
    before = (run_dir / ".hydra" / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="resume a run that began with it on a machine with one"):
        opened("32-true", trainer__precision="auto")
    assert (run_dir / ".hydra" / "config.yaml").read_bytes() == before
    assert not (run_dir / ".hydra" / "resumed.jsonl").exists()


def test_a_directory_that_this_process_has_opened_is_not_resumed(
    opened: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = opened()
    lock_folder(run_dir, "run_dir")
    opened()
    assert not (run_dir / ".hydra" / "resumed.jsonl").exists()
    opened()
    assert (run_dir / ".hydra" / "resumed.jsonl").exists()
    assert capsys.readouterr().err.count("resuming") == 1


class Killed(BaseException):
    """Ends a process where a kill would."""


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize("call", range(16))
def test_a_kill_while_starting_holds_nothing_up(
    call: int, resume: str | None, opened: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 11, B1: killed at each call that changes a file, before it."""
    calls = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls > call:  # nothing that would clean up is done after a kill either
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("mkdir", "replace", "rename", "fsync", "unlink", "rmdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            opened()
            assert call >= calls, "every call was let through"
        except Killed:
            pass
    run_dir = opened(resume=resume)  # the same command, or with resume=auto
    folder = run_dir / ".hydra"
    assert (folder / "config.yaml").read_text().startswith(f"# diffem {__version__}")
    assert {p.name for p in folder.iterdir()} - {"resumed.jsonl"} == {
        "config.yaml",
        "hydra.yaml",
        "overrides.yaml",
    }
    assert {p.name for p in run_dir.iterdir()} == {".hydra", ".lock"}
    assert resumed_arguments([f"resume={run_dir}"])[-1] == "resume=auto"  # and resume=DIR


def test_what_a_killed_process_of_an_older_version_left_holds_nothing_up(
    opened: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / ".hydra" / "overrides.yaml").write_text("[]")
    (tmp_path / "run" / ".hydra" / "hydra.yaml.tmp77").write_text("hyd")
    assert (opened() / ".hydra" / "config.yaml").is_file()


def test_other_files_are_not_touched(opened: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("thesis.tex", ".hydra/thesis.tex"):
        file = tmp_path / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("precious")
        with pytest.raises(UserError, match=r"holds other files.*thesis.tex is not of a run"):
            opened()
        assert file.read_text() == "precious"
        file.unlink()


def test_a_resumed_run_keeps_what_was_changed(opened: Callable[..., Path]) -> None:
    """Issue 11, B8: `resume=DIR em.rounds=3`, killed; then `resume=DIR`."""
    run_dir = opened()
    opened(em__rounds=3)
    assert "em.rounds=3" in resumed_arguments([f"resume={run_dir}"])
    with pytest.raises(UserError, match=r"it was 3, got 1; give em\.rounds=3 or more"):
        opened()
    opened(em__rounds=3)  # the advice


def test_the_overrides_of_a_resumed_run_are_written_before_its_configuration(
    opened: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two leaves what can be resumed by all three ways."""
    run_dir = opened()

    def killed(cfg: object, path: Path) -> None:
        if path.name == "config.yaml":
            raise Killed
        save_config(cfg, path)

    with monkeypatch.context() as patch:
        patch.setattr("diffem.storage.run_dir.save_config", killed)
        with pytest.raises(Killed):
            opened(em__rounds=3)
    assert "em.rounds=3" in resumed_arguments([f"resume={run_dir}"])
    opened()
    opened(em__rounds=3)


def test_the_number_of_rounds_on_the_disk_may_change(opened: Callable[..., Path]) -> None:
    """Issue 11, B8: a full disk's advice, "set em.keep_rounds=2", was refused."""
    opened()
    opened(em__keep_rounds=2)


def test_the_figure_to_stop_by_stays(opened: Callable[..., Path]) -> None:
    """The best value of one figure was compared with another figure."""
    opened()
    opened(em__stop={"figure": "hidden_entries", "patience": 1})
    opened(em__stop={"figure": "hidden_entries", "patience": 2})
    with pytest.raises(UserError, match=r"em\.stop\.figure was hidden_entries and is other"):
        opened(em__stop={"figure": "other", "patience": 2})


def test_what_was_is_said_as_it_is_given(opened: Callable[..., Path]) -> None:
    opened(em__guard=None)
    with pytest.raises(UserError, match=r"em\.guard was null and is true; choose"):
        opened(em__guard=True)


def test_a_budget_that_a_finished_run_does_not_use_is_named(
    opened: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = opened(em__seconds=3)
    run = {"config_sha256": "a", "data_sha256": "b"}
    write_record(run_dir / "run.json", run)
    write_record(run_dir / "summary.json", {"final": {"psnr": 11.0}, "run": run})
    for budget, shown in ((3, False), (None, True)):
        with pytest.raises(SystemExit):
            opened(resume="auto", em__seconds=budget)
        said = " ".join(capsys.readouterr().err.split())
        assert "is finished already" in said
        assert ("em.seconds has no effect without more em.rounds" in said) == shown


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b'{"final": 3}', b"[" * 9999]
)
def test_a_damaged_summary_is_no_finished_run(
    content: bytes, opened: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 11, B10: "finished already"."""
    summary = opened() / "summary.json"
    summary.write_bytes(content)
    opened(resume="auto")
    said = "".join(capsys.readouterr().err.split())
    assert "isdamaged;therunisevaluatedagain" in said and not summary.exists()


def test_a_summary_that_was_edited_is_no_finished_run(opened: Callable[..., Path]) -> None:
    run_dir = opened()
    summary, run = run_dir / "summary.json", {"config_sha256": "a", "data_sha256": "b"}
    write_record(run_dir / "run.json", run)
    write_record(summary, {"final": {"psnr": 11.0}, "run": run})
    with pytest.raises(SystemExit):
        opened(resume="auto")
    summary.write_text(summary.read_text().replace("11.0", "44.0"))
    opened(resume="auto")
    assert not summary.exists()


def test_temporary_files_of_a_killed_process_are_removed(opened: Callable[..., Path]) -> None:
    """Issue 11, B10: `*.tmpPID` stayed."""
    run_dir = opened()
    left = [
        "rounds.json.tmp7",
        "checkpoints/last.new.tmp8",
        ".hydra/config.yaml.tmp9",
        "reconstructions/round_000/manifest.json.tmp7",
        "reconstructions/round_000/locks_6f.closed/00001",
    ]
    mine = [
        "notes.tmp",
        "locks_of_mine/x",
        "figures/a.tmpfile",
        "reconstructions/round_000/chunk_00000.npy",
    ]
    for name in (*left, *mine):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text("x")
    opened()
    assert not any((run_dir / name).exists() for name in left)
    assert all((run_dir / name).exists() for name in mine)


@pytest.mark.parametrize("what", ["link", "fifo", "folder"])
@pytest.mark.parametrize(
    "place",
    [
        ".lock",
        "summary.json",
        "rounds.json",
        "metrics.jsonl",
        ".hydra/config.yaml",
        ".hydra/resumed.jsonl",
        "checkpoints/last.ckpt",
        "figures/curves.png",
        "reconstructions/round_000/chunk_00000.npy",
    ],
)
def test_what_a_run_writes_is_no_link(
    place: str, what: str, opened: Callable[..., Path], tmp_path: Path
) -> None:
    """Issue 11, A4: refused in one sentence before anything is written; a FIFO does not hang."""
    path, thesis = opened() / place, tmp_path / "thesis.tex"
    thesis.write_text("precious")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if what == "link":
        path.symlink_to(thesis)
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="remove it, or choose another run_dir") as refused:
        opened(em__rounds=2)
    assert str(path) in str(refused.value)
    assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("place", [".hydra", "checkpoints", "figures", "reconstructions"])
def test_no_folder_of_a_run_is_a_link(
    place: str, opened: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir, elsewhere = opened(), tmp_path / "elsewhere"
    if (run_dir / place).exists():
        (run_dir / place).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (run_dir / place).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{place} is a link, where a run writes its own"):
        opened()


def test_a_run_directory_may_be_a_link(opened: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = opened()
    run_dir.rename(tmp_path / "elsewhere")
    run_dir.symlink_to(tmp_path / "elsewhere")
    opened()


def test_a_folder_beside_the_rounds_is_left_alone(opened: Callable[..., Path]) -> None:
    """Issue 11, B10: a copy of a round, by its user."""
    backup = opened() / "reconstructions" / "round_001_backup"
    backup.mkdir(parents=True)
    (backup / "chunk_00000.npy").touch()
    opened()
    check_space(backup.parents[1], 1, rounds=1, last=0)


def test_too_small_a_disk_is_reported_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffem.storage.run_dir.free_bytes", lambda _: 100_000)
    check_space(tmp_path, 40_000, rounds=2, last=1)
    with pytest.raises(UserError, match=r"of 3 rounds need 0\.00012 GB and 0\.0001 GB are free"):
        check_space(tmp_path, 40_000, rounds=3, last=2)
    held = tmp_path / "reconstructions" / "round_000"
    held.mkdir(parents=True)
    (held / "chunk_00000.npy").write_bytes(bytes(40_000))
    check_space(tmp_path, 40_000, rounds=3, last=2)  # a third of it is there already
    held.rename(held.with_name("round_008"))  # those before it were removed
    check_space(tmp_path, 40_000, rounds=11, last=10)
