"""A cell of a comparison: one run of train.py, in a process of its own."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffem.runtime.process import last_line, read_summary, start_run


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
        return read_summary(self.folder)

    def start(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Starts the cell from its beginning; what an unfinished run left is removed.

        Arguments:
            environment: Variables to set besides this process's own.

        Returns:
            The process, which leads a process group: killing the group leaves no rank behind.
        """
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.log.unlink(missing_ok=True)
        own = (f"seed={self.seed}", f"run_dir={self.folder}")
        return start_run((*self.overrides, *own), self.log, environment=environment)

    def failure(self) -> str:
        """Returns the last line that a failed run printed."""
        return last_line(self.log)
