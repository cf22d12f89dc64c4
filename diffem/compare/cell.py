"""A cell of a comparison: one run of train.py, in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).parents[2] / "train.py"


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    row: str
    seed: int
    folder: Path
    """The run directory; `FOLDER.log` holds what the run printed."""
    overrides: tuple[str, ...] = ()
    """What the run is given, besides its seed and directory."""

    @property
    def log(self) -> Path:
        """The file of what the run printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def summary(self) -> dict[str, Any] | None:
        """Returns the run's summary, or None if it did not end well."""
        try:
            return json.loads((self.folder / "summary.json").read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None  # none yet, or killed while it was written

    def start(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Starts the cell from its beginning; what an unfinished run left is removed.

        Arguments:
            environment: Variables to set besides this process's own.

        Returns:
            The process, which leads a process group: killing the group leaves no rank behind.
        """
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        own = (f"seed={self.seed}", f"run_dir={self.folder}")
        with self.log.open("w") as log:
            return subprocess.Popen(
                [sys.executable, str(TRAIN), *self.overrides, *own],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def failure(self) -> str:
        """Returns the last line that a failed run printed."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the run printed nothing"
