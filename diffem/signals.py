"""Stops: a signal ends the run with a code that says it can be resumed; no process is orphaned."""

import ctypes
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

GO_ON = "the same command goes on from where the run was"
RANK_DIED = f"error: another process of the run died; {GO_ON}"
RESUMABLE = 75  # EX_TEMPFAIL: the same command goes on from where it was
PR_SET_PDEATHSIG = 1


def stop_on_signals() -> None:
    """Makes SIGTERM and SIGUSR1 end this process at once, with exit code 75.

    Nothing needs to be saved first: what a kill leaves is gone on with, to the same weights. The
    other processes of the run end with this one.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop)
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        die_with_parent()


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, however it ends (Linux alone)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(RESUMABLE)


def _stop(number: int, frame: FrameType | None) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        # Lightning sends SIGTERM too, when another process of the run has died.
        stop(f"stopped by {signal.Signals(number).name}; {GO_ON}", RESUMABLE)
    os._exit(RESUMABLE)


def stop(line: str, code: int) -> NoReturn:
    """Ends this process at once, with a last line."""
    os.write(2, f"{line}\n".encode())  # a signal may come in the middle of a print
    os._exit(code)
