"""Runs train.py as a user does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import warm_python

from diffem.runtime.process import Job

ROOT = Path(__file__).parents[2]
NASTY = "é = #1 (a), [b] {c}: 'd' \"e\" 100% ~f\\"  # the name of a file or a folder

SHORT = (  # seconds instead of minutes, on one or two processes
    "dataset.train=200",
    "em.rounds=2",
    "em.steps_per_round=6",
    "em.chunk_size=60",
    "sampler.steps=4",
    "network.channels=[16]",
    "network.blocks=[1]",
    "init.iterations=1",
    "init.components=2",
    "metric.samples=3",
    "metric.subset=16",
    "metric.heldout=20",
    "metric.prior=16",
    "prior.steps=6",
    "trainer.log_every_n_steps=2",
)

LONG = (*SHORT, "prior=null", "em.steps_per_round=40", "em.steps_per_epoch=8", "em.rounds=3")
TWO = ("trainer.devices=2", "trainer.accelerator=cpu")


def train(*overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs train.py to its end."""
    return run_warm(str(ROOT / "train.py"), *overrides, **environment)


def run_jobs(jobs: Sequence[Job], parallel: int, clear: Callable[[Job], object]) -> None:
    """Runs jobs of a comparison, in the place of `run_jobs`, without importing the libraries."""
    for job in jobs:
        train(*job.overrides, f"run_dir={job.run_dir}")


def run_warm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script, or `-m` and a module, to its end, without the seconds of importing libraries.

    With variables that Python, or a library, reads when it starts, it is a new Python.
    """
    new = {name for name, value in environment.items() if os.environ.get(name) != value}
    if any(name.startswith(("PYTHON", "OMP_")) for name in new):
        return run_python(*arguments, **environment)
    return warm_python.run(*arguments, cwd=ROOT, environment={**os.environ, **environment})


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a new Python with arguments to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def wait_until(
    done: Callable[[], object],
    process: subprocess.Popen[str] | None = None,
    *,
    seconds: float = 120,
    every: float = 0.01,
) -> None:
    """Returns when something is so; it must come in time, and before a process has ended."""
    end = time.monotonic() + seconds
    while not done():
        assert process is None or process.poll() is None, "the process has ended"
        assert time.monotonic() < end, "too late"
        time.sleep(every)


def ranks(run_dir: Path) -> dict[int, int]:
    """Returns the processes of a run by their rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if str(run_dir).encode() in words and b"train.py" in words:
            rank = environment.partition(b"LOCAL_RANK=")[2].partition(b"\0")[0]
            found[int(rank or 0)] = int(folder.name)
    return found


def weights(run_dir: Path) -> list[str]:
    """Returns the hash of the weights that made each round."""
    manifests = sorted(run_dir.glob("reconstructions/round_*/manifest.json"))
    return [json.loads(path.read_text())["weights_sha256"] for path in manifests]


def assert_gone(run_dir: Path, seconds: float) -> None:
    wait_until(lambda: not ranks(run_dir), seconds=seconds, every=0.1)
