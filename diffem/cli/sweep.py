"""Sweeps: each job is a run in a process of its own, and one line however it ends.

SWEEP/N/           the run directory of job N; the same command again goes on with it
SWEEP/N.log        what it printed
SWEEP/.jobs/       how the jobs of the last command ended
SWEEP/sweep.json   the same in one file
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from diffem.report.closing import COLUMNS
from diffem.runtime.process import end_runs, last_line, read_summary, start_run
from diffem.runtime.progress import console
from diffem.runtime.signals import GO_ON, PARENT, set_parent_death_signal, stop
from diffem.storage.atomic import write_file

RECORDS = ".jobs"
POLL_SECONDS = 0.1
FINISHED = "finished"


class Sweep(Callback):
    """Hydra's callback in the process of the command, before any job."""

    folder: Path | None = None
    """The sweep's folder, once there is a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401
        """Opens the folder of records, with what all jobs are given."""
        folder = Path(str(config.hydra.sweep.dir))
        shutil.rmtree(folder / RECORDS, ignore_errors=True)
        (folder / RECORDS).mkdir(parents=True)
        given = OmegaConf.to_container(config.hydra.overrides.task)
        (folder / RECORDS / "given.json").write_text(json.dumps(given))
        Sweep.folder = folder


class Job(NamedTuple):
    """One job of a sweep, and how it went."""

    number: int
    overrides: list[str]
    run_dir: str
    ended: str = "did not end"
    """`finished`, or why not."""
    seconds: float = 0.0

    def __str__(self) -> str:
        own = " ".join(self.overrides)
        return f"job {self.number} ({own})" if own else f"job {self.number}"

    @property
    def log(self) -> Path:
        """The file of what the run printed."""
        return Path(f"{self.run_dir}.log")

    def line(self) -> str:
        """Returns the line that tells how it went."""
        how = FINISHED if self.ended == FINISHED else f"FAILED: {self.ended}"
        return f"{self} in {self.seconds:.0f} s: {how}"

    def keep(self, folder: Path) -> None:
        """Writes the job among the records."""
        content = json.dumps(self._asdict()).encode()
        write_file(folder / f"{self.number:05d}.json", lambda file: file.write(content))


class SubprocessJobs:
    """Decorates Hydra's main: of a sweep, each job is run in a process of its own.

    A launcher may send it elsewhere, and there only jobs are run: the main is left behind.
    """

    def __init__(self, main: Callable[[DictConfig], None] | None = None) -> None:
        self.main = main
        if main is not None:
            update_wrapper(self, main)

    def __call__(self, cfg: DictConfig) -> float | None:
        """Runs a job, or the main."""
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return run_job(cfg.objective)
        assert self.main is not None
        return self.main(cfg)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return SubprocessJobs, ()


def run_job(objective: str) -> float | None:
    """Runs the job that Hydra calls for, in a process of its own.

    Arguments:
        objective: The key of the summary's held-out scores that the sweeper gets.

    Returns:
        The score; None if the run failed, so that the sweep goes on.
    """
    hydra = HydraConfig.get()
    parent = os.environ.get(PARENT)
    worker = parent != str(os.getpid())
    if worker and parent == str(os.getppid()):  # joblib's, which would outlive a kill
        set_parent_death_signal(os.getppid())
    records = Path(str(hydra.sweep.dir)) / RECORDS
    given = json.loads((records / "given.json").read_text())
    overrides = [o for o in hydra.overrides.task if not o.startswith(("run_dir=", "resume="))]
    own = [o for o in overrides if o not in given]
    job = Job(hydra.job.num, own, hydra.runtime.output_dir)
    job.keep(records)
    search = [o for o in hydra.overrides.hydra if o.startswith("hydra.searchpath=")]
    ours = (f"run_dir={job.run_dir}", "resume=auto")
    start = time.monotonic()
    process = start_run((*overrides, *search, *ours), job.log, cwd=hydra.runtime.cwd)
    try:
        _wait(process, job, shown=console.is_terminal and not worker)
    finally:
        end_runs([process])
    score, ended = _outcome(process.returncode, job, objective)
    job = job._replace(ended=ended, seconds=round(time.monotonic() - start, 1))
    job.keep(records)
    console.print(job.line(), soft_wrap=True, markup=False)
    return score


@contextmanager
def print_sweep_summary() -> Iterator[None]:
    """Opens a scope at whose end a sweep, if there was one, is summed up.

    Raises:
        SystemExit: If a job did not finish.
    """
    Sweep.folder = None
    try:
        yield
    except KeyboardInterrupt:
        if Sweep.folder is not None:
            stop(f"interrupted; {GO_ON}", 128 + signal.SIGINT)
        raise
    except Exception:
        if Sweep.folder is None or not (jobs := print_summary(Sweep.folder)):
            raise
        if any(job.ended == FINISHED for job in jobs):
            raise
        sys.exit(1)  # no job finished, and a sweeper has nothing to choose from
    if Sweep.folder is not None and any(
        job.ended != FINISHED for job in print_summary(Sweep.folder)
    ):
        sys.exit(1)


def print_summary(folder: Path) -> list[Job]:
    """Prints how the jobs of a sweep ended, and writes it to `sweep.json`."""
    files = sorted((folder / RECORDS).glob("[0-9]*.json"))
    jobs = [Job(**json.loads(file.read_text())) for file in files]
    table = Table(title=f"{len(jobs)} jobs in {folder}")
    for name in ("job", "overrides", *list(COLUMNS)[:4], "ended"):
        table.add_column(name, justify="right" if name in COLUMNS else "left", overflow="fold")
    rows = []
    for job in jobs:
        summary = read_summary(Path(job.run_dir)) if job.ended == FINISHED else None
        final = summary["final"] if summary else {}
        rows.append({**job._asdict(), "final": final})
        values = [(final.get(key), digits) for key, digits in list(COLUMNS.values())[:4]]
        figures = ("–" if v is None else f"{v:.{d}f}" for v, d in values)
        ended = FINISHED if job.ended == FINISHED else "FAILED"
        table.add_row(str(job.number), "\n".join(job.overrides), *figures, ended)
    content = json.dumps(rows, indent=1).encode()
    write_file(folder / "sweep.json", lambda file: file.write(content))
    Console().print(table)
    failed = [job for job in jobs if job.ended != FINISHED]
    for job in failed:
        console.print(job.line(), f"see {job.log}", sep="; ", soft_wrap=True, markup=False)
    if failed:
        console.print(
            f"{len(failed)} of {len(jobs)} jobs failed; with run_dir={folder} the same command "
            "tries them again and keeps the others",
            soft_wrap=True,
            markup=False,
        )
    return jobs


def _wait(process: "subprocess.Popen[bytes]", job: Job, *, shown: bool) -> None:
    """Waits for a run's end, and shows the last line that it printed on a terminal."""
    if not shown:
        console.print(f"{job}: log in {job.log}", soft_wrap=True, markup=False)
        process.wait()
        return
    with console.status(str(job)) as status:
        while process.poll() is None:
            status.update(f"{job}: {last_line(job.log)}"[: console.width - 4])
            time.sleep(POLL_SECONDS)


def _outcome(code: int, job: Job, objective: str) -> tuple[float | None, str]:
    """Returns a run's score and `finished`, or None and why it failed."""
    line = last_line(job.log).removeprefix("error: ")
    if code < 0:
        memory = " (out of memory?)" if -code == signal.SIGKILL else ""
        return None, f"killed by {signal.Signals(-code).name}{memory}"
    if code == 1:  # told by the run, or the last line of a traceback
        return None, line
    summary = read_summary(Path(job.run_dir))
    if code != 0 or summary is None:
        return None, f"exit code {code} before its end, after: {line}"
    if objective not in summary["final"]:
        known = ", ".join(k for k, v in summary["final"].items() if isinstance(v, float))
        return None, f"objective={objective} is not among the run's scores: {known}"
    return float(summary["final"][objective]), FINISHED
