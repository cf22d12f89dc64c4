"""Stops: a signal ends the run with a code that says it can be resumed; no process is orphaned."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

GO_ON = "the same command goes on from where the run was"
RANK_DIED = f"error: another process of the run died; {GO_ON}"
RESUMABLE = 75  # EX_TEMPFAIL: the same command goes on from where it was
STOPS = (signal.SIGTERM, signal.SIGUSR1)
PARENT = "DIFFEM_PARENT"  # the process that this one must not outlive
PR_SET_PDEATHSIG = 1
WATCH_SECONDS = 0.2
# All of these that are set are 0 in a run's first process, whoever started it: torchrun,
# Lightning, or SLURM.
RANKS = ("RANK", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK", "SLURM_PROCID")


def global_rank() -> int:
    """Returns 0 in a run's first process, on all nodes, and elsewhere a number above it."""
    return max(int(os.environ.get(name, "0")) for name in RANKS)


def stop_on_signals() -> None:
    """Makes SIGTERM and SIGUSR1 end this process at once, with exit code 75.

    Nothing needs to be saved first: what a kill leaves is gone on with, to the same weights. The
    other processes of the run end with this one.
    """
    for number in STOPS:
        signal.signal(number, _stop)


def watch_signals() -> None:
    """Lets the signals act while the main thread waits outside Python, as in a collective."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            for number in os.read(read, 1):
                if number in STOPS and signal.getsignal(number) is _stop:
                    _stop(number, None)

    threading.Thread(target=watch, name="signals", daemon=True).start()


@contextmanager
def exit_with_parent() -> Iterator[None]:
    """Opens a scope whose process, a rank or a sweep's job, does not outlive what started it.

    Linux alone: the kernel kills it, however its parent ends. What a user started is not tied.
    """
    elastic = "TORCHELASTIC_RUN_ID" in os.environ  # torchrun's are its processes, all of them
    given = os.environ.get(PARENT)
    if elastic or given:
        set_parent_death_signal(os.getppid() if elastic or not given else int(given))
    os.environ[PARENT] = str(os.getpid())  # of the ranks and jobs that this process starts
    try:
        yield
    finally:
        os.environ.pop(PARENT)
        if given:
            os.environ[PARENT] = given


def set_parent_death_signal(parent: int) -> None:
    """Has the kernel kill this process when its parent ends (Linux alone)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(RESUMABLE)


def _stop(number: int, frame: FrameType | None) -> None:
    if not _stopping.acquire(blocking=False):
        return  # the watch was faster, or the handler was
    if global_rank() == 0:
        # torchrun sends SIGTERM too, when another process of the run has died.
        stop(f"stopped by {signal.Signals(number).name}; {GO_ON}", RESUMABLE)
    os._exit(RESUMABLE)


_stopping = threading.Lock()


def stop(line: str, code: int) -> NoReturn:
    """Ends this process at once, with a last line."""
    os.write(2, f"{line}\n".encode())  # a signal may come in the middle of a print
    os._exit(code)


def tell(mistake: str) -> None:
    """Says what is wrong: on stderr, and to torchrun, whose report of the failure comes last."""
    print(mistake, file=sys.stderr)
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        told = {"message": {"message": mistake, "extraInfo": {"timestamp": time.time()}}}
        with suppress(OSError):
            Path(file).write_text(json.dumps(told))


def watch_ranks(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends this process, the first, as soon as one that it started does not end well."""
    while None in (codes := [process.poll() for process in processes]) or any(codes):
        for rank, code in enumerate(codes, start=1):
            if code == 1:  # it has said why
                os._exit(1)
            if code:
                how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                stop(f"error: process {rank} of the run was ended {how}; {GO_ON}", 1)
        time.sleep(WATCH_SECONDS)
