"""Runs of `diffem train` in processes of their own, for sweeps and comparisons."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffem.runtime.progress import printable, progress_bar, say
from diffem.runtime.ranges import check
from diffem.runtime.rank import PARENT, RANK_VARIABLES
from diffem.runtime.signals import signal_name

CHECKOUT = Path(__file__).parents[2]
if (CHECKOUT / "pyproject.toml").is_file():  # which need not be installed
    TRAIN, VARIABLES = (str(CHECKOUT / "train.py"),), {}
else:  # a wheel; the current directory's modules, which -m prefers, are not imported
    TRAIN, VARIABLES = ("-m", "diffem", "train"), {"PYTHONSAFEPATH": "1"}
POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0  # between asking a job to end and killing it


@dataclass
class Job:
    """One run of `diffem train` in a process of its own.

    Arguments:
        name: How lines of progress call it.
        run_dir: The run directory. What the run prints is appended to `RUN_DIR.log`.
        overrides: The arguments of `diffem train`, besides run_dir.
    """

    name: str
    run_dir: Path
    overrides: tuple[str, ...] = ()
    _process: "subprocess.Popen[bytes] | None" = field(
        default=None, init=False, compare=False, repr=False
    )
    _started: float = field(default=0.0, init=False, compare=False, repr=False)

    @property
    def log(self) -> Path:
        """The file of what the run printed."""
        return self.run_dir.with_name(f"{self.run_dir.name}.log")

    @property
    def seconds(self) -> float:
        """The seconds since the start."""
        return time.monotonic() - self._started

    def start(
        self, *, cwd: str | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts the process. It leads a process group, so that its ranks end with it.

        Arguments:
            cwd: The working directory; None for this process's.
            environment: Variables to set besides this process's own.
        """
        inherited = {
            name: value
            for name, value in os.environ.items()
            # A job finds its own place.
            if name not in RANK_VARIABLES and not name.startswith("TORCHELASTIC_")
        }
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        with self.log.open("a") as file:
            self._process = subprocess.Popen(
                [sys.executable, *TRAIN, *self.overrides, f"run_dir={self.run_dir}"],
                cwd=cwd,
                env={**inherited, **VARIABLES, PARENT: str(os.getpid()), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        """Returns whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def wait(self, timeout: float | None = None) -> None:
        """Waits until the process has ended.

        Raises:
            subprocess.TimeoutExpired: If it has not after `timeout` seconds.
        """
        if self._process is not None:
            self._process.wait(timeout)

    def send(self, number: int) -> None:
        """Sends a signal to the process and its ranks, also to ranks that have outlived it."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def summary(self) -> dict[str, Any] | None:
        """Returns the run's summary.json; None if there is none: the run has not finished.

        A summary that is damaged is none either.
        """
        try:
            summary = json.loads((self.run_dir / "summary.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        finished = isinstance(summary, dict) and isinstance(summary.get("final"), dict)
        return summary if finished else None

    def last_line(self) -> str:
        """Returns the last line that the run printed, without what would steer a terminal."""
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        lines = text.strip().splitlines()
        return printable(lines[-1]).strip() if lines else "the run printed nothing"

    def failure(self) -> str | None:
        """Returns why the run did not finish; None if it did."""
        code = 0 if self._process is None else self._process.returncode or 0
        if code < 0:
            memory = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"killed by {signal_name(-code)}{memory}"
        if code == 1:  # its last line is the error, or the end of a traceback
            return self.last_line()
        if code != 0 or self.summary() is None:
            return f"exit code {code} before its end, after: {self.last_line()}"
        return None


def end_jobs(jobs: Iterable[Job]) -> None:
    """Ends jobs: SIGTERM, and SIGKILL to what is left after GRACE_SECONDS.

    Of a job that has ended by itself, the ranks that it left behind are ended.
    """
    jobs = list(jobs)
    for job in jobs:
        job.send(signal.SIGTERM)
    end = time.monotonic() + GRACE_SECONDS
    for job in jobs:
        with suppress(subprocess.TimeoutExpired):
            job.wait(max(0.0, end - time.monotonic()))
        job.send(signal.SIGKILL)
        job.wait()


def run_jobs(jobs: Sequence[Job], parallel: int, clear: Callable[[Job], object]) -> None:
    """Runs jobs from their beginning, in their order; one that fails does not stop the others.

    Arguments:
        jobs: The jobs.
        parallel: How many run at a time.
        clear: Removes what an unfinished run of a job has left, before the job starts.

    Raises:
        UserError: If `parallel` is not a whole number of at least 1.
        KeyboardInterrupt: On Ctrl-C, or whatever else the signal's handler raises, when no job
            runs any more.
    """
    environments = slot_environments(check("--jobs", parallel))
    waiting, running = deque(jobs), dict[int, Job]()
    with delayed_signals() as received, progress_bar("comparison", len(jobs), "runs") as advance:
        try:
            while (waiting or running) and not received:
                for slot, environment in enumerate(environments):
                    if slot in running and not running[slot].is_running():
                        job = running.pop(slot)
                        end_jobs([job])
                        if job.summary() is None:
                            say(f"{job.name}: failed in {job.seconds:.0f} s: {job.failure()}")
                        else:
                            say(f"{job.name}: finished in {job.seconds:.0f} s")
                        advance(job.name)
                    if slot not in running and waiting:
                        clear(waiting[0])
                        running[slot] = waiting.popleft()
                        running[slot].start(environment=environment)
                time.sleep(POLL_SECONDS)
        finally:
            end_jobs(running.values())
        if received:
            raise KeyboardInterrupt


def slot_environments(parallel: int) -> list[dict[str, str]]:
    """Returns the environment variables to set for the jobs of each slot.

    Jobs that run at a time share the cores, unless the user has set OMP_NUM_THREADS. They share
    the GPUs if there is at least one for each: slot s of n gets GPUs s, s + n, s + 2n, …

    Arguments:
        parallel: The number n of slots.
    """
    if parallel == 1:
        return [{}]
    gpus = _gpus()
    share = str(max(1, _cores() // parallel))
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or share}
    if len(gpus) < parallel:
        return [threads] * parallel
    return [
        {**threads, "CUDA_VISIBLE_DEVICES": ",".join(gpus[s::parallel])} for s in range(parallel)
    ]


@contextmanager
def delayed_signals() -> Iterator[list[int]]:
    """Opens a scope that records SIGINT, SIGTERM and SIGHUP, and raises the first one at its end.

    If it acted at once, a signal between the start of a process and its registration would leave
    the process behind.

    Yields:
        The numbers of the signals so far.
    """
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))  # a container may have fewer than the machine
    return os.cpu_count() or 1


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch  # takes seconds: only where it is used

        return [str(i) for i in range(torch.cuda.device_count())]
    return [gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
