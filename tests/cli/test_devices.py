"""Law 3 on several processes: the E-step's bytes depend on (seed, round, weights) alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ROOT, SHORT, ranks, train

pytestmark = pytest.mark.kill

# 203 measurements in chunks of 20: 11 chunks, the last of 3; none of it divides by 2 or by 3.
COMMON = (
    *(word for word in SHORT if not word.startswith("init.")),  # there are two inits
    "dataset.train=203",
    "em.chunk_size=20",
    "em.rounds=1",
    "em.batch_size=6",
    "prior=null",
    "trainer.accelerator=cpu",
)


def chunks(run_dir: Path, round: int) -> dict[str, str]:
    """Returns the checksums of a round."""
    manifest = run_dir / "reconstructions" / f"round_{round:03d}" / "manifest.json"
    return json.loads(manifest.read_text())["chunks"]


def nfe(run_dir: Path, round: int) -> int:
    """Returns the network function evaluations up to a round."""
    return json.loads((run_dir / "rounds.json").read_text())["rounds"][round]["nfe"]


def run(run_dir: Path, devices: int, *overrides: str) -> Path:
    words = (*COMMON, f"trainer.devices={devices}", f"run_dir={run_dir}", *overrides)
    done = train(*words, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("alone") / "run", 1)


def test_one_two_and_three_processes_write_the_same(alone: Path, tmp_path: Path) -> None:
    """By the init, and by a network: that of another run, so that the weights are the same."""
    given = ("init=checkpoint", f"init.path={alone}")
    network = chunks(run(tmp_path / "network_1", 1, *given), 0)
    assert len(network) == 11 and network != chunks(alone, 0)
    for devices in (2, 3):
        init = run(tmp_path / f"init_{devices}", devices)
        assert chunks(init, 0) == chunks(alone, 0)
        assert chunks(run(tmp_path / f"network_{devices}", devices, *given), 0) == network


def test_what_a_slow_process_leaves_others_make(alone: Path, tmp_path: Path) -> None:
    """The second process stands still as long as there is anything but its own chunk to make."""
    run_dir = tmp_path / "run"
    slow = ("init=checkpoint", f"init.path={alone}", "sampler.steps=256", "trainer.devices=2")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *COMMON, *slow, f"run_dir={run_dir}"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    folder, end = run_dir / "reconstructions" / "round_000", time.monotonic() + 120

    def wait(count: int) -> None:
        while len(list(folder.glob("*.npy"))) < count:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)

    while not list(folder.glob("locks_*/00001")):  # the first of the second process's share
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    second = ranks(run_dir)[1]
    os.kill(second, signal.SIGSTOP)
    before = len(list(folder.glob("*.npy")))
    wait(10)
    assert before <= 2 and not (folder / "manifest.json").exists()
    os.kill(second, signal.SIGCONT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    again = ("init=checkpoint", f"init.path={alone}", "sampler.steps=256")
    one = run(tmp_path / "alone", 1, *again)
    assert chunks(run_dir, 0) == chunks(one, 0)
    assert nfe(run_dir, 0) == nfe(one, 0) > 0
