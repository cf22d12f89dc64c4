"""The folder of a comparison: the record of its rows, the runs that are missing, the report."""

import json
from pathlib import Path
from shlex import quote
from typing import Any

from diffem.cli.study import Study, job_of
from diffem.runtime.errors import UserError, usable
from diffem.runtime.process import Job, run_jobs
from diffem.runtime.progress import console, say, warn
from diffem.runtime.ranges import check
from diffem.storage.atomic import read_json, write_text
from diffem.storage.lock import lock_folder, unlock_folder
from diffem.storage.run_dir import check_clearable, clear_run

RECORD = "overrides.json"
WRITTEN = (  # into the folder, besides the runs and the record
    *("report.html", "table.md", "table.csv", "table.tex"),
    *("rounds.png", "compute.png", "nfe.png"),
)


def compare(study: Study, out: Path, *, jobs: int = 1) -> list[Job]:
    """Runs the missing jobs of a study, and writes the report of the folder.

    The report covers all that the folder holds: rows and seeds of earlier commands too.

    Arguments:
        study: The rows, their overrides and the seeds.
        out: The folder, which holds the runs as ROW/seed_SEED.
        jobs: How many run at a time.

    Returns:
        The jobs that failed.

    Raises:
        UserError: If the folder holds a comparison under other overrides, another process is
            writing it, a run's folder holds other files, or `jobs` is below 1.
    """
    check("--jobs", jobs)
    with usable("--out", out):
        out.mkdir(parents=True, exist_ok=True)
        lock_folder(out, "--out")
    try:
        return _compare(study, out, jobs)
    finally:
        unlock_folder(out)


def _compare(study: Study, out: Path, jobs: int) -> list[Job]:
    """Runs the missing jobs in a folder that this process has locked; see `compare`."""
    record = _record(study, out)
    wanted = study.jobs(out)
    missing = [job for job in wanted if job.summary() is None]
    if kept := len(wanted) - len(missing):
        console.print(f"{kept} of {len(wanted)} runs are finished already")
    for job in missing:
        check_clearable(job.run_dir)  # now, and not after hours
    run_jobs(missing, jobs, _clear)
    failed = [job for job in wanted if job.summary() is None]
    for job in failed:
        say(f"failed: {job.name}: {job.failure()}")
    from diffem.report.comparison import write_comparison  # imports torch, which takes seconds

    title = " ".join((*([study.name] if study.name else []), *study.common))
    for path in write_comparison(out, _summaries(record, out), title):
        say(f"wrote {path}")
    return failed


def _clear(job: Job) -> None:
    """Removes what an unfinished run of a job has left."""
    clear_run(job.run_dir)
    job.log.unlink(missing_ok=True)


def _record(study: Study, out: Path) -> dict[str, Any]:
    """Writes a study's overrides and seeds to the folder's record, after those of earlier ones.

    Returns:
        The record: `overrides`, shared by all rows, and of each of its `rows` the `overrides` and
        `seeds`.

    Raises:
        UserError: If the folder, or a row in it, has other overrides.
    """
    file = out / RECORD
    record: dict[str, Any] = {"overrides": list(study.common), "rows": {}}
    if file.exists():
        record = _read_record(file)
        _check_same("a comparison", record["overrides"], study.common, out)
    elif foreign := [out / name for name in WRITTEN if (out / name).exists()]:
        raise UserError(f"{foreign[0]} is not of a comparison; choose another folder as --out")
    for row, overrides in study.rows.items():
        held = record["rows"].setdefault(row, {"overrides": list(overrides), "seeds": []})
        _check_same(f"the row {row}", held["overrides"], overrides, out)
        held["seeds"] = list(dict.fromkeys([*held["seeds"], *study.seeds]))
    write_text(file, json.dumps(record, indent=1) + "\n")
    return record


def read_comparison(out: Path) -> tuple[list[str], dict[str, dict[int, Path]]]:
    """Returns what a comparison's folder holds.

    Arguments:
        out: The folder.

    Returns:
        The overrides that all rows share; and the run directories of each row, by their seeds,
        without those that were never started.

    Raises:
        UserError: If its record is damaged, or of an older version of diffem.
    """
    record = _read_record(out / RECORD)
    runs = {
        row: {seed: job.run_dir for seed in held["seeds"] if _began(job := job_of(out, row, seed))}
        for row, held in record["rows"].items()
    }
    return record["overrides"], runs


def _began(job: Job) -> bool:
    return job.summary() is not None or job.log.is_file()


def _read_record(file: Path) -> dict[str, Any]:
    """Returns the record of a folder's comparison.

    Raises:
        UserError: If it is damaged, or of an older version of diffem.
    """
    record = read_json(file) or {}
    rows = record.get("rows")
    sound = isinstance(rows, dict) and all(
        isinstance(held, dict)
        and _is_list(held.get("overrides"), str)
        and _is_list(held.get("seeds"), int)
        for held in rows.values()
    )
    if not sound or not _is_list(record.get("overrides"), str):
        raise UserError(
            f"{file} is damaged, or of an older comparison; choose another folder as --out"
        )
    return record


def _is_list(value: object, item: type) -> bool:
    return isinstance(value, list) and all(type(element) is item for element in value)


def _check_same(what: str, held: list[str], given: tuple[str, ...], out: Path) -> None:
    if held != list(given):
        raise UserError(
            f"--out {out} holds {what} under {' '.join(held)!r}, got {' '.join(given)!r}; choose "
            "another folder"
        )


def _summaries(record: dict[str, Any], out: Path) -> dict[str, dict[int, dict[str, Any] | None]]:
    """Returns each row's summaries by seed, None for a failed run; runs never started are out.

    Warns of a summary that is there and is damaged, of which nothing is in the report.
    """
    from diffem.report.record import read_record

    found = {}
    for row, held in record["rows"].items():
        jobs = {seed: job_of(out, row, seed) for seed in held["seeds"]}
        records = {seed: read_record(job.run_dir) for seed, job in jobs.items() if _began(job)}
        found[row] = {seed: record.finished for seed, record in records.items()}
        for seed, summary in found[row].items():
            if summary is None and jobs[seed].summary() is not None:
                warn(
                    f"{jobs[seed].run_dir / 'summary.json'} is damaged, and its run is left out "
                    "of the report; move it away, and `diffem train "
                    f"resume={quote(str(jobs[seed].run_dir))}` writes it again"
                )
    return found
