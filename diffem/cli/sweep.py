"""Sweeps: each job is a run in a process of its own, and one line however it ends.

SWEEP/N/           the run directory of job N; the same command again resumes it
SWEEP/N.log        what it printed
SWEEP/.jobs/       the records of the last command's jobs
SWEEP/sweep.json   the same in one file
"""

import json
import os
import signal
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
from rich.markup import escape

from diffem.cli.errors import report_user_errors
from diffem.config.build import build
from diffem.config.secrets import redact_in_place
from diffem.config.trust import SEARCH_PATH
from diffem.runtime.errors import UserError, usable
from diffem.runtime.process import Job, end_jobs
from diffem.runtime.progress import console, plain_console, say, warn
from diffem.runtime.rank import PARENT
from diffem.runtime.signals import RESUME_HINT, exit_now, set_parent_death_signal
from diffem.storage.atomic import write_text
from diffem.storage.entries import check_entries
from diffem.storage.lock import lock_folder
from diffem.storage.strict_json import to_json

RECORDS = ".jobs"
POLL_SECONDS = 0.1
FINISHED = "finished"
OBJECTIVES = ("hidden_mse", "measurement_energy_distance")
"""What a search minimises unless `objective` is given: the first that a job has."""
DIRECTIONS = {"minimize": "lower", "maximize": "higher"}
"""Which values each direction of Optuna's takes for better."""


class SweepCallback(Callback):
    """Hydra's callback, in the process of the command, before any job."""

    folder: Path | None = None
    """The sweep's folder, once there is a sweep."""
    searches: bool = False
    """Whether its sweeper chooses jobs by the scores of others."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401
        """Opens the folder of records, and writes the overrides that all jobs share."""
        folder = Path(str(config.hydra.sweep.dir))
        with report_user_errors():  # Hydra makes a warning of a callback's exception
            _open_records(folder, config)
            sweeper = str(OmegaConf.select(config, "hydra.sweeper._target_"))
            SweepCallback.searches = not sweeper.endswith(".BasicSweeper")
            if SweepCallback.searches and config.get("objective") is not None:
                _check_direction(config)
        SweepCallback.folder = folder
        redact_in_place(config)  # Hydra saves it as multirun.yaml; the jobs compose their own


def _check_direction(config: DictConfig) -> None:
    """Warns of a search for the worst value of a score, or for an end of one that has no best."""
    from diffem.metric import Evaluation  # imports torch, which takes seconds

    evaluation: Evaluation = build(config.metric, "metric")
    found = [score.better for score in evaluation.scores if score.name == config.objective]
    direction = OmegaConf.select(config, "hydra.sweeper.direction")
    if not found or direction not in DIRECTIONS or found[0] == DIRECTIONS[direction]:
        return
    opposite = next(other for other in DIRECTIONS if other != direction)
    best = "and neither low nor high values of it are better; choose another score"
    if found[0] is not None:
        best = f"of which {found[0]} is better; set hydra.sweeper.direction={opposite}"
    warn(f"the search will {direction} objective={config.objective}, {best}")


def _open_records(folder: Path, config: DictConfig) -> None:
    """Locks a sweep's folder, and opens the folder of its records.

    Raises:
        UserError: If another process writes the folder, or it is a run's directory.
    """
    records = folder / RECORDS
    with usable("run_dir", folder):
        check_entries(folder, writing=True)
        if (folder / ".hydra").exists():
            raise UserError(
                f"run_dir={folder} holds a run; choose another run_dir for the jobs of a sweep"
            )
        folder.mkdir(parents=True, exist_ok=True)
        lock_folder(folder, "run_dir")
        records.mkdir(exist_ok=True)
        for file in _record_files(folder):
            file.unlink()  # of the command before
        shared = json.dumps(OmegaConf.to_container(config.hydra.overrides.task))
        write_text(records / "shared.json", shared)


def _record_files(folder: Path) -> list[Path]:
    return sorted((folder / RECORDS).glob("[0-9]*.json"))


class Record(NamedTuple):
    """What is known of one job of a sweep; a file among the records."""

    number: int
    overrides: list[str]
    """The overrides that are the job's own."""
    run_dir: str
    ended: str = "did not end"
    """`finished`, or the reason why not."""
    seconds: float = 0.0
    objective: str | None = None
    """The score that the sweeper got of it; None if it failed."""

    def __str__(self) -> str:
        own = " ".join(self.overrides)
        return f"job {self.number} ({own})" if own else f"job {self.number}"

    def line(self) -> str:
        """Returns a line that says how the job ended."""
        how = FINISHED if self.ended == FINISHED else f"FAILED: {self.ended}"
        return f"{self} in {self.seconds:.0f} s: {how}"

    def write(self, folder: Path) -> None:
        """Writes the record to the folder of records."""
        write_text(folder / f"{self.number:05d}.json", json.dumps(self._asdict()))


class SubprocessJobs:
    """Decorates Hydra's main: runs each job of a sweep in a process of its own.

    A launcher may pickle it and call it on another machine, where only jobs are run: the main is
    not pickled.

    Arguments:
        main: The function of a single run.
    """

    def __init__(self, main: Callable[[DictConfig], None] | None = None) -> None:
        self.main = main
        if main is not None:
            update_wrapper(self, main)

    def __call__(self, cfg: DictConfig) -> float | None:
        """Runs a job of a sweep, or the main of a single run."""
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return run_job(cfg.objective)
        assert self.main is not None
        return self.main(cfg)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return SubprocessJobs, ()


def run_job(objective: str | None) -> float | None:
    """Runs the job that Hydra calls for, in a process of its own.

    Arguments:
        objective: The key in the summary's held-out scores of the value that the sweeper gets;
            None: the first of `OBJECTIVES` that is there.

    Returns:
        The score; None if the run failed, so that the other jobs run.
    """
    hydra = HydraConfig.get()
    parent = os.environ.get(PARENT)
    worker = parent != str(os.getpid())
    if worker and parent == str(os.getppid()):  # joblib's, which would outlive a kill
        set_parent_death_signal(os.getppid())
    records = Path(str(hydra.sweep.dir)) / RECORDS
    shared = json.loads((records / "shared.json").read_text())
    overrides = [o for o in hydra.overrides.task if not o.startswith(("run_dir=", "resume="))]
    own = [o for o in overrides if o not in shared]
    record = Record(hydra.job.num, own, hydra.runtime.output_dir)
    record.write(records)
    search = [o for o in hydra.overrides.hydra if o.startswith(f"{SEARCH_PATH}=")]
    job = Job(str(record), Path(record.run_dir), (*overrides, *search, "resume=auto"))
    job.start(cwd=hydra.runtime.cwd)
    try:
        _wait(job, live=console.is_terminal and not worker)
    finally:
        end_jobs([job])
    name, score, ended = outcome(job, objective)
    record = record._replace(ended=ended, seconds=round(job.seconds, 1), objective=name)
    record.write(records)
    say(record.line())
    return score


@contextmanager
def print_sweep_summary() -> Iterator[None]:
    """Opens a scope at whose end the summary of a sweep is printed, if there was one.

    Raises:
        SystemExit: If a job did not finish.
    """
    SweepCallback.folder = None
    try:
        yield
    except KeyboardInterrupt:
        if SweepCallback.folder is not None:
            exit_now(f"interrupted; {RESUME_HINT}", 128 + signal.SIGINT)
        raise
    except Exception:
        if SweepCallback.folder is None or not (records := print_records(SweepCallback.folder)):
            raise
        if any(record.ended == FINISHED for record in records):
            raise
        sys.exit(1)  # no job finished, and a sweeper has nothing to choose from
    if SweepCallback.folder is not None and any(
        record.ended != FINISHED for record in print_records(SweepCallback.folder)
    ):
        sys.exit(1)


def print_records(folder: Path) -> list[Record]:
    """Prints how the jobs of a sweep ended, and writes it to `sweep.json`.

    Arguments:
        folder: The sweep's folder.

    Returns:
        The jobs' records.
    """
    from diffem.metric import read_scores  # imports torch, which takes seconds
    from diffem.report.table import Column, fitting_table, print_fitting

    records = [Record(**json.loads(file.read_text())) for file in _record_files(folder)]
    jobs = [Job(str(record), Path(record.run_dir)) for record in records]
    summaries = [
        (job.summary() or {}) if record.ended == FINISHED else {}
        for record, job in zip(records, jobs, strict=True)
    ]
    scores = [score for score in read_scores(summaries) if score.heading]
    finals = [summary.get("final", {}) for summary in summaries]
    rows = [{**r._asdict(), "final": f} for r, f in zip(records, finals, strict=True)]
    columns = [
        Column("job", [str(record.number) for record in records]),
        Column("overrides", ["\n".join(record.overrides) for record in records], folds=True),
        *(Column(s.heading, [s.text(f.get(s.name)) for f in finals]) for s in scores),
        Column("ended", [r.ended if r.ended == FINISHED else "FAILED" for r in records]),
    ]
    write_text(folder / "sweep.json", to_json(rows, indent=1))
    title = f"{len(records)} jobs in {folder}"
    print_fitting(fitting_table(title, columns, width=plain_console().width))
    failed = [record for record in records if record.ended != FINISHED]
    for record in failed:
        say(f"{record.line()}; see {Job(str(record), Path(record.run_dir)).log}")
    judged = sorted({record.objective for record in records if record.objective})
    if SweepCallback.searches and len(judged) > 1:
        say(
            f"jobs were judged by different scores ({', '.join(judged)}), which do not compare; "
            f"start the search again in another run_dir, with objective={OBJECTIVES[-1]}"
        )
    if failed:
        say(
            f"{len(failed)} of {len(records)} jobs failed; with run_dir={folder} the same command "
            "tries them again and keeps the others"
        )
    return records


def _wait(job: Job, *, live: bool) -> None:
    """Waits for a job's end; shows its last line meanwhile if the display is live."""
    if not live:
        say(f"{job.name}: log in {job.log}")
        job.wait()
        return
    with console.status(escape(job.name)) as status:
        while job.is_running():
            status.update(escape(f"{job.name}: {job.last_line()}"[: console.width - 4]))
            time.sleep(POLL_SECONDS)


def outcome(job: Job, objective: str | None) -> tuple[str | None, float | None, str]:
    """Returns the name of a job's score, the score and `finished`; or Nones and why it failed."""
    if failure := job.failure():
        return None, None, failure.removeprefix("error: ")
    final = (job.summary() or {})["final"]
    names = OBJECTIVES if objective is None else (objective,)
    for name in names:
        if final.get(name) is not None:
            return name, float(final[name]), FINISHED
    known = ", ".join(k for k, v in final.items() if isinstance(v, float))
    asked = " or ".join(names)
    return None, None, f"objective={asked} is not among the run's scores: {known}"
