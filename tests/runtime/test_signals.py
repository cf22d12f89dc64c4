"""A signal leaves no process behind, and a run that can be resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import LONG, ROOT, SHORT, TWO, assert_gone, ranks, train, wait_until

from diffem.runtime.signals import install_signal_handlers, stoppable

pytestmark = pytest.mark.kill


# Two processes, rounds of some seconds.
def start(run_dir: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *LONG, *overrides, f"run_dir={run_dir}"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whatever pytest has
    )


def last_weights(run_dir: Path) -> str:
    manifest = run_dir / "reconstructions" / "round_003" / "manifest.json"
    return json.loads(manifest.read_text())["weights_sha256"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = train(*LONG, f"run_dir={run_dir}", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return last_weights(run_dir)


def test_ctrl_c_ends_a_run_whose_tee_has_ended_first(tmp_path: Path) -> None:
    """`diffem train 2>&1 | tee log`: exit code 1, and a run that failed by a BrokenPipeError."""
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_until((run_dir / "checkpoints" / "last.ckpt").exists, process)
    assert process.stderr is not None
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert json.loads((run_dir / "ended.json").read_text())["state"] == "stopped"


def test_a_command_that_is_stopped_cleans_up_without_a_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody_reads(*_: object) -> int:
        raise BrokenPipeError

    with pytest.raises(SystemExit) as stop, stoppable():
        monkeypatch.setattr(os, "write", nobody_reads)
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_a_run_that_can_be_resumed(
    number: signal.Signals, whole: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start(run_dir)
    wait_until((run_dir / "checkpoints" / "last.ckpt").exists, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else 75)
    assert " M-step " not in error  # no line of a stage that did not end (issue 11, B11)
    assert error.splitlines()[-1] == (
        f"stopped by {number.name}; the same command resumes the run"
    )
    done = train(*LONG, f"run_dir={run_dir}", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert last_weights(run_dir) == whole


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory: pytest.TempPathFactory) -> str:
    run_dir = tmp_path_factory.mktemp("two") / "run"
    done = train(*LONG, *TWO, f"run_dir={run_dir}", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return last_weights(run_dir)


@pytest.mark.parametrize(
    ("rank", "file"),
    [
        (0, "reconstructions/round_001/weights.json"),
        (1, "reconstructions/round_002/chunk_00000.npy"),
        (1, "checkpoints/last.previous.ckpt"),
    ],
)
def test_two_processes_of_which_one_is_killed_are_resumed(
    rank: int, file: str, whole_of_two: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start(run_dir, *TWO)
    wait_until((run_dir / file).exists, process)
    os.kill(ranks(run_dir)[rank], signal.SIGKILL)
    process.communicate(timeout=15)
    assert_gone(run_dir, 15)
    done = train(f"resume={run_dir}", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert last_weights(run_dir) == whole_of_two


@pytest.mark.parametrize(("rank", "number"), [(0, 15), (0, 9), (1, 9)])
def test_no_process_outlives_another(rank: int, number: int, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(run_dir, *TWO)
    wait_until((run_dir / "checkpoints" / "last.ckpt").exists, process)
    found = ranks(run_dir)
    assert set(found) == {0, 1}
    os.kill(found[rank], number)
    _, error = process.communicate(timeout=15)
    assert process.returncode == {(0, 15): 75, (0, 9): -9, (1, 9): 1}[rank, number]
    assert_gone(run_dir, 15)
    if rank == 1:
        assert error.splitlines()[-1] == (
            "error: process 1 of the run was ended by SIGKILL; the same command resumes the run"
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_stopped_cleans_up(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before, done = signal.getsignal(number), False
    with pytest.raises(SystemExit) as stop, stoppable():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # a second one does not interrupt the cleanup
            done = True
    assert stop.value.code == 128 + number and done and signal.getsignal(number) is before
    assert capfd.readouterr().err == (f"stopped by {number.name}; start the same command again\n")


def test_a_run_within_a_command_leaves_the_command_s_handlers() -> None:
    """`diffem erase` has a run: a signal in it must not leave the command's folder behind."""
    with stoppable():
        before = signal.getsignal(signal.SIGTERM)
        install_signal_handlers()
        assert signal.getsignal(signal.SIGTERM) is before


def poisoned_train(*overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs train.py on two processes, of which the second has an infinite loss at step 5."""
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "tests" / "helpers" / "poisoned_train.py"),
            *SHORT,
            *TWO,
            *overrides,
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_two_processes_meet_bad_numbers_alike(tmp_path: Path) -> None:
    """One has the bad loss; both stop, or both roll back, and neither waits for the other."""
    stopped, whole = f"run_dir={tmp_path / 'stopped'}", f"run_dir={tmp_path / 'whole'}"
    often = "em.steps_per_epoch=2"
    done = poisoned_train(stopped, often)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("not finite at optimiser step 5 (round 1)") == 1
    assert poisoned_train(stopped, often, "m_step.rollbacks=1").returncode == 0
    done = poisoned_train(whole, often, "m_step.rollbacks=1")
    assert done.returncode == 0, done.stderr
    assert "resuming from it at 0.5 of the learning rate" in done.stderr
    manifests = [
        json.loads((path / "reconstructions" / "round_002" / "manifest.json").read_text())
        for path in (tmp_path / "stopped", tmp_path / "whole")
    ]
    assert manifests[0]["weights_sha256"] == manifests[1]["weights_sha256"]
    assert manifests[0]["chunks"] == manifests[1]["chunks"]


STUCK = """
import ctypes
from diffem.runtime.signals import install_signal_handlers, watch_signals

install_signal_handlers()
watch_signals()
mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
print("ready", flush=True)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_lock(mutex)  # for ever, and a signal does not interrupt it
"""


def test_a_signal_acts_where_the_main_thread_is_outside_python() -> None:
    """As in a collective on GPUs, of which another process is gone."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.terminate()
    try:
        _, error = process.communicate(timeout=15)
    finally:
        process.kill()
    assert process.returncode == 75 and error.startswith("stopped by SIGTERM; ")
