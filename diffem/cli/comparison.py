"""The folder of a comparison: claimed by one set of overrides, filled cell by cell, reported."""

import json
from pathlib import Path
from typing import Any

from diffem.cli.cell import Cell
from diffem.cli.jobs import run_cells
from diffem.cli.study import Study
from diffem.report.comparison import write_comparison
from diffem.runtime.errors import UserError, check_count
from diffem.runtime.progress import console

CLAIM = "overrides.json"


def compare(study: Study, out: Path, *, jobs: int = 1) -> list[Cell]:
    """Runs the missing cells, writes the comparison, and returns the cells that failed.

    The report covers all that the folder holds: rows and seeds of earlier commands too.

    Arguments:
        study: What is compared.
        out: The folder, which holds the runs as ROW/seed_SEED.
        jobs: How many runs at a time.

    Raises:
        UserError: If the folder holds a comparison under other overrides, or jobs is below 1.
    """
    check_count("--jobs", jobs)
    claim = _claim(study, out)
    cells = study.cells(out)
    missing = [cell for cell in cells if cell.summary() is None]
    if kept := len(cells) - len(missing):
        console.print(f"{kept} of {len(cells)} runs are finished already")
    run_cells(missing, jobs)
    failed = [cell for cell in cells if cell.summary() is None]
    for cell in failed:
        line = f"failed: {cell.row}, seed {cell.seed}: {cell.failure()}"
        console.print(line, soft_wrap=True, markup=False)
    title = " ".join((*([study.name] if study.name else []), *study.common))
    for path in write_comparison(out, _runs(claim, out), title):
        console.print(f"wrote {path}", soft_wrap=True)
    return failed


def _claim(study: Study, out: Path) -> dict[str, Any]:
    """Keeps a folder to one set of overrides, and a row in it to its own.

    Returns:
        What the folder has been given so far: `overrides` and, of each of its `rows`, `overrides`
        and `seeds`.

    Raises:
        UserError: If the folder, or a row in it, is under other overrides.
    """
    file = out / CLAIM
    claim: dict[str, Any] = {"overrides": list(study.common), "rows": {}}
    if file.is_file():
        claim = json.loads(file.read_text())
        if not isinstance(claim, dict):
            raise UserError(f"--out {out} holds an older comparison; choose another folder")
        _check("a comparison", claim["overrides"], study.common, out)
    for row, overrides in study.rows.items():
        held = claim["rows"].setdefault(row, {"overrides": list(overrides), "seeds": []})
        _check(f"the row {row}", held["overrides"], overrides, out)
        held["seeds"] = list(dict.fromkeys([*held["seeds"], *study.seeds]))
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(claim, indent=1) + "\n")
    return claim


def _check(what: str, held: list[str], given: tuple[str, ...], out: Path) -> None:
    if held != list(given):
        raise UserError(
            f"--out {out} holds {what} under {' '.join(held)!r}, got {' '.join(given)!r}; choose "
            "another folder"
        )


def _runs(claim: dict[str, Any], out: Path) -> dict[str, dict[int, dict[str, Any] | None]]:
    """Returns the summary of each seed of each row, None if it failed; cells never run are out."""
    runs = {}
    for row, held in claim["rows"].items():
        cells = [Cell(row, seed, out / row / f"seed_{seed}") for seed in held["seeds"]]
        found = {cell: cell.summary() for cell in cells}
        runs[row] = {c.seed: s for c, s in found.items() if s is not None or c.log.is_file()}
    return runs
