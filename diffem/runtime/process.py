"""A run of train.py as a process of its own, of a sweep or a comparison."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffem.runtime.signals import PARENT, RANKS

TRAIN = Path(__file__).parents[2] / "train.py"
GRACE_SECONDS = 5.0  # between asking a run to end and killing it
PLACE = (  # what tells a process its place among others: the run finds its own
    *RANKS,
    "LOCAL_WORLD_SIZE",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PL_GLOBAL_SEED",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
)


def start_run(
    overrides: Sequence[str],
    log: Path,
    *,
    cwd: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts train.py.

    Arguments:
        overrides: What it is given.
        log: The file that what it prints is added to.
        cwd: Where it runs; by default where this process does.
        environment: Variables to set besides this process's own.

    Returns:
        The process, which leads a process group: killing the group leaves no rank behind.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in PLACE and not name.startswith("TORCHELASTIC_")
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, str(TRAIN), *overrides],
            cwd=cwd,
            env={**kept, PARENT: str(os.getpid()), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end_runs(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ends runs, and the ranks that a run which has ended left behind."""
    processes = list(processes)
    for process in processes:
        send(process, signal.SIGTERM)
    end = time.monotonic() + GRACE_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        send(process, signal.SIGKILL)
        process.wait()


def send(process: subprocess.Popen[bytes], number: int) -> None:
    """Sends a signal to all that a process has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """Returns a run's summary, or None if it did not end well."""
    try:
        return json.loads((run_dir / "summary.json").read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None  # none yet, or killed while it was written


def last_line(log: Path) -> str:
    """Returns the last line that a run printed."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1].strip() if lines else "the run printed nothing"
