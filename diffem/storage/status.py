"""Where a run is, and how its last process ended, from its directory alone.

ended.json   how the last process ended, where it did not finish and could still say so: by an
             error, or by a signal. A process that resumes the run removes it.
"""

import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from diffem.config.secrets import redact_text
from diffem.runtime.errors import UserError
from diffem.runtime.progress import printable
from diffem.storage.atomic import read_json, write_text
from diffem.storage.lock import is_locked
from diffem.storage.strict_json import to_json

ENDED = "ended.json"


class State(StrEnum):
    """Where a run is."""

    RUNNING = "running"
    """A process is writing it."""
    FINISHED = "finished"
    """It has its summary."""
    STOPPED = "stopped"
    """Its process was asked to end, by a signal, and can be resumed."""
    FAILED = "failed"
    """Its process ended with an error."""
    LOST = "lost"
    """Its process ended without a message: it was killed, or the machine went down."""


@dataclass(frozen=True)
class RunStatus:
    """Where a run is, and why."""

    state: State
    reason: str = ""
    """What ended the process, where that is known; without secrets."""


def write_ended(run_dir: Path, status: RunStatus) -> None:
    """Writes how the process of a run ended, for `read_status`.

    Arguments:
        run_dir: The run directory.
        status: How it ended.
    """
    record = {"state": status.state.value, "reason": status.reason, "time": time.time()}
    write_text(run_dir / ENDED, to_json(record, indent=1))


def of_error(error: BaseException) -> RunStatus:
    """Returns the status of a run that an exception ends; its text is without secrets."""
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return RunStatus(State.STOPPED, "stopped by Ctrl-C")
    text = redact_text(str(error))
    sentence = isinstance(error, UserError | FloatingPointError)
    name = type(error).__name__
    return RunStatus(State.FAILED, text if sentence else f"{name}: {text}" if text else name)


def read_status(run_dir: Path) -> RunStatus:
    """Returns where a run is, whoever asks.

    Arguments:
        run_dir: A run directory.
    """
    if is_locked(run_dir):
        return RunStatus(State.RUNNING)
    summary = read_json(run_dir / "summary.json")
    if summary is not None and isinstance(summary.get("final"), dict):
        return RunStatus(State.FINISHED)
    held = read_json(run_dir / ENDED) or {}
    state, reason = held.get("state"), held.get("reason")
    if state in (State.STOPPED, State.FAILED) and isinstance(reason, str):
        return RunStatus(State(state), printable(" ".join(reason.split())))
    return RunStatus(State.LOST)
