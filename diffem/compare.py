"""Compares methods on one footing: the same data, network, budget and seeds.

    python -m diffem.compare --methods diffem em_mmps --out runs/mask -- em.seconds=60 em.rounds=99

Every cell (method, seed) is a run of train.py with the overrides after `--`, in a process of its
own. Finished cells are kept: the command goes on where it stopped. A cell that fails is marked,
and the rest go on; the exit code is then 1.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffem.command import mistakes_told
from diffem.em.progress import console, phase
from diffem.error import UserError
from diffem.report.comparison import write_comparison

TRAIN = Path(__file__).parent.parent / "train.py"


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    method: str
    seed: int
    folder: Path
    """The run directory; `FOLDER.log` holds what the run printed."""

    def summary(self) -> dict[str, Any] | None:
        """Returns the run's summary, or None if it did not end well."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def run(self, overrides: Sequence[str]) -> None:
        """Runs the cell from its beginning; what an unfinished run left is removed."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        own = [f"method={self.method}", f"seed={self.seed}", f"run_dir={self.folder}"]
        with self.folder.with_suffix(".log").open("w") as log:
            command = [sys.executable, str(TRAIN), *overrides, *own]
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)

    def failure(self) -> str:
        """Returns the last line that a failed run printed."""
        lines = self.folder.with_suffix(".log").read_text().strip().splitlines()
        return lines[-1] if lines else "the run printed nothing"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the cells that are missing and writes the comparison."""
    parser = argparse.ArgumentParser(
        prog="python -m diffem.compare", description="Compares methods on one footing."
    )
    parser.add_argument("--methods", nargs="+", required=True, help="files of conf/method")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="the folder of the comparison")
    parser.add_argument("overrides", nargs="*", help="after --, what all runs are given")
    chosen = parser.parse_args(arguments)
    with mistakes_told():
        failed = compare(chosen.methods, chosen.seeds, chosen.out.resolve(), chosen.overrides)
    sys.exit(1 if failed else 0)


def compare(
    methods: Sequence[str], seeds: Sequence[int], out: Path, overrides: Sequence[str]
) -> list[Cell]:
    """Runs the missing cells, writes the comparison, and returns the cells that failed.

    Raises:
        UserError: If a method is unknown, or the folder holds a comparison under other overrides.
    """
    known = sorted(path.stem for path in (TRAIN.parent / "conf" / "method").glob("*.yaml"))
    if unknown := [m for m in methods if m not in known]:
        raise UserError(f"--methods can be {', '.join(known)}; got {', '.join(unknown)}")
    _claim(out, overrides)
    cells = [Cell(m, s, out / m / f"seed_{s}") for m in methods for s in seeds]
    with phase("comparison", len(cells), "runs") as advance:
        for cell in cells:
            if cell.summary() is None:
                cell.run(overrides)
            advance(f"{cell.method}, seed {cell.seed}")
    failed = [cell for cell in cells if cell.summary() is None]
    for cell in failed:
        line = f"failed: {cell.method}, seed {cell.seed}: {cell.failure()}"
        console.print(line, soft_wrap=True, markup=False)
    runs = {m: [c.summary() for c in cells if c.method == m] for m in methods}
    for path in write_comparison(out, runs, " ".join(overrides)):
        console.print(f"wrote {path}", soft_wrap=True)
    return failed


def _claim(out: Path, overrides: Sequence[str]) -> None:
    """Keeps a folder to one set of overrides."""
    file = out / "overrides.json"
    if file.is_file() and json.loads(file.read_text()) != list(overrides):
        raise UserError(
            f"--out {out} holds a comparison under {' '.join(json.loads(file.read_text()))!r}, "
            f"got {' '.join(overrides)!r}; choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(list(overrides)))


if __name__ == "__main__":
    main()
