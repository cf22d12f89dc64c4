"""What the files of a run are bound to: its configuration and its measurements.

run.json in the run directory is written when the run starts. Every round, every checkpoint and the
summary name the same hashes, so that a file of another run is never taken for one of this run.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.storage.atomic import read_record, write_record

FILE = "run.json"


class RunIdentity(NamedTuple):
    """Two hashes that tell one run from another."""

    config_sha256: str
    """The hash of the settings that determine a run's results."""
    data_sha256: str
    """The hash of the measurements, and of what else was read from files."""

    def short(self) -> str:
        """Returns one short hash of both."""
        return hashlib.sha256(" ".join(self).encode()).hexdigest()[:16]

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Returns whether a record names the same run."""
        return all(record.get(key) == value for key, value in self._asdict().items())


def is_of_run(run_dir: Path, summary: Mapping[str, Any]) -> bool:
    """Returns whether a summary names the run that a directory is bound to.

    Arguments:
        run_dir: The run directory.
        summary: The content of a summary.
    """
    record = read_record(run_dir / FILE) or {}
    bound = {key: record.get(key) for key in RunIdentity._fields}
    return summary.get("run") == bound


def bind(run_dir: Path, identity: RunIdentity, *, threads: int) -> None:
    """Writes what a run is bound to when it starts, and compares with it when it is resumed.

    Warns if the number of threads differs: sums are then taken in another order, so that the last
    bits of what is computed differ.

    Arguments:
        run_dir: The run directory, locked by this process.
        identity: What the run is bound to.
        threads: The number of threads that a process computes with.

    Raises:
        UserError: If the run began with other measurements, or the directory is another run's.
    """
    record = read_record(run_dir / FILE)
    if record is None:
        write_record(run_dir / FILE, {**identity._asdict(), "threads": threads})
        return
    if record.get("config_sha256") != identity.config_sha256:
        raise UserError(
            f"{run_dir / FILE} is of another run, with other settings; put this run's own file "
            "back, or choose another run_dir"
        )
    check_data(run_dir, identity.data_sha256)
    if record.get("threads") != threads:
        warn(
            f"the run in {run_dir} began with {record.get('threads')} threads a process and is "
            f"resumed with {threads}, which changes the last bits of its results; set "
            f"OMP_NUM_THREADS={record.get('threads')} for the same ones"
        )


def check_data(run_dir: Path, sha256: str) -> None:
    """Compares measurements with those that a run is bound to.

    Arguments:
        run_dir: The run directory; one without a readable run.json is bound to none.
        sha256: The hash of the measurements, and of what else the run reads from files.

    Raises:
        UserError: If the run began with other measurements.
    """
    record = read_record(run_dir / FILE)
    if record is not None and record.get("data_sha256") != sha256:
        raise UserError(
            "dataset: the measurements (or what a file of m_step.clean, corruption.coils, "
            "corruption.kernel or corruption.masks holds) are not those that the run in "
            f"{run_dir} began with; put those back, or start in a new run_dir"
        )
