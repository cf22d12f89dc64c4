"""Writes the page of a run, or one that compares several: `diffem report RUN [RUN …]`.

    diffem report runs/mine
    diffem report runs/mine runs/other --out both.html

A comparison's or a sweep's folder is one page, with a row for each set of overrides. Nothing is
computed but means: a run can be looked at while it runs, and after it failed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffem.cli.arguments import parse_report
from diffem.cli.comparison import RECORD, read_comparison
from diffem.cli.errors import report_user_errors
from diffem.report.comparison import table
from diffem.report.comparison_page import write_comparison_page
from diffem.report.page import GENERATOR, write_run_page
from diffem.report.record import read_record
from diffem.runtime.errors import UserError, usable
from diffem.runtime.progress import plain_console
from diffem.storage.entries import check_entries, check_writable
from diffem.storage.run_dir import PAGE, check_version, read_settings
from diffem.storage.strict_json import read_list

SWEEP = "sweep.json"
OWN = ("run_dir=", "resume=", "seed=")  # overrides that do not name a row
HEAD = 2048  # bytes of a file that say what wrote it

Runs = dict[str, dict[int, Path]]
"""The run directories of each row, by their seeds."""


class Comparison(NamedTuple):
    """Several runs, and what they are called together."""

    title: str
    runs: Runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a page.

    Arguments:
        arguments: The command's arguments; None for this process's.

    Raises:
        SystemExit: With code 1 and one sentence if the user made an error.
    """
    chosen = parse_report(arguments)
    with report_user_errors():
        written = write_report(chosen.runs, chosen.out)
        plain_console().print(f"wrote {written}", soft_wrap=True)


def write_report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the page of one run, or one page that compares several.

    Arguments:
        paths: Run directories; or one folder of a comparison or of a sweep.
        out: The file; None for `report.html` in the only folder.

    Returns:
        The file.

    Raises:
        UserError: If a folder is none of these or of another version of diffem, several are given
            without `out`, or the file is not one that diffem wrote.
    """
    if out is None and len(paths) > 1:
        raise UserError(
            f"{len(paths)} runs are given, and no file for their page; add --out FILE, as in "
            "--out comparison.html"
        )
    target = paths[0] / PAGE if out is None else out
    single = len(paths) == 1 and _is_run(paths[0])
    compared = None if single else _compared(paths)
    for folder in [paths[0]] if compared is None else _folders(compared.runs):
        check_entries(folder, writing=out is None)
        check_version(folder)
    _check_own(target)
    check_writable(target.parent, "choose another file as --out")
    with usable("--out", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        if compared is None:
            return write_run_page(paths[0], out=target)
        _write_comparison(target, compared)
    return target


def _is_run(path: Path) -> bool:
    return (path / ".hydra" / "config.yaml").is_file()


def _folders(runs: Runs) -> list[Path]:
    return [folder for seeds in runs.values() for folder in seeds.values()]


def _compared(paths: Sequence[Path]) -> Comparison:
    """Returns the runs that folders hold.

    Raises:
        UserError: If one is no run's, or it is one folder and holds no runs.
    """
    if len(paths) == 1:
        folder = paths[0]
        if (folder / RECORD).is_file():
            overrides, runs = read_comparison(folder)
            return Comparison(" ".join(overrides) or "default run", runs)
        if jobs := _jobs(folder):
            return Comparison(f"Sweep {folder.absolute().name}", _sweep_rows(jobs))
        raise UserError(
            f"{folder} holds no run, comparison or sweep; give a run directory, or the folder of "
            "a comparison or a sweep"
        )
    for path in paths:
        if not _is_run(path):
            raise UserError(
                f"{path} holds no run; several runs are compared by their run directories, and a "
                "comparison or a sweep is given alone"
            )
    folders = [path.resolve() for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        if folders.count(folder) > 1:
            raise UserError(f"{path} is given more than once; give each run once")
    runs = {str(path): {_seed(read_record(path).summary): path} for path in paths}
    return Comparison(f"{len(runs)} runs", runs)


def _seed(summary: Mapping[str, Any]) -> int:
    seed = summary.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def _jobs(folder: Path) -> dict[Path, list[str]]:
    """Returns the run directories of a sweep, and the overrides of each."""
    found = {}
    for job in read_list(folder / SWEEP):
        if isinstance(job, dict) and isinstance(job.get("run_dir"), str):
            overrides = job.get("overrides")
            own = overrides if isinstance(overrides, list) else []
            found[folder / Path(job["run_dir"]).name] = [str(o) for o in own]
    if found:
        return found
    numbered = [path for path in folder.glob("[0-9]*") if path.name.isdecimal() and _is_run(path)]
    ordered = sorted(numbered, key=lambda path: int(path.name))
    overrides = {path: read_settings(path)[1] for path in ordered}
    common = set.intersection(*map(set, overrides.values())) if overrides else set()
    return {path: [o for o in own if o not in common] for path, own in overrides.items()}


def _sweep_rows(jobs: Mapping[Path, Sequence[str]]) -> Runs:
    """Returns the rows of a sweep: jobs that differ in nothing but their seed are one."""
    rows: Runs = {}
    for path, overrides in jobs.items():
        name = " ".join(o for o in overrides if not o.startswith(OWN)) or "all jobs"
        given = [o.removeprefix("seed=") for o in overrides if o.startswith("seed=")]
        seed = int(given[-1]) if given and given[-1].lstrip("-").isdecimal() else 0
        if seed in rows.get(name, {}):
            name = f"{name} (job {path.name})"
        rows.setdefault(name, {})[seed] = path
    return rows


def _check_own(path: Path) -> None:
    """Refuses a file that diffem did not write.

    Raises:
        UserError: If there is one, or something that is no file.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path} is no regular file; choose another --out")
    if path.is_file():
        with path.open("rb") as file:
            if GENERATOR.encode() not in file.read(HEAD):
                raise UserError(f"{path} is not a page of diffem; choose another --out")


def _write_comparison(path: Path, compared: Comparison) -> None:
    """Writes the page of several runs."""
    records = {
        row: {seed: read_record(folder) for seed, folder in seeds.items()}
        for row, seeds in compared.runs.items()
    }
    runs = {row: {s: r.finished for s, r in seeds.items()} for row, seeds in records.items()}
    write_comparison_page(path, records, title=compared.title, table=table(runs))
