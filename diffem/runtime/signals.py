"""Signals: a stopped run exits with a code that says it can be resumed, and leaves no orphans."""

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, NoReturn

from diffem.runtime.rank import PARENT, global_rank

if TYPE_CHECKING:
    import subprocess

RESUME_HINT = "the same command resumes the run"
RANK_DIED = f"error: another process of the run died; {RESUME_HINT}"
RESUMABLE = 75  # EX_TEMPFAIL: the exit code of a run that the same command resumes
INTERRUPTED = 128 + signal.SIGINT  # as of any command on Ctrl-C
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1
WATCH_SECONDS = 0.2
at_exit: list[Callable[[str], object]] = []
"""What `exit_now` calls with its last line, since it skips Python's own `atexit`."""


def signal_name(number: int) -> str:
    """Returns a signal's name; its number if it has none, as most realtime signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def install_signal_handlers() -> None:
    """Makes SIGTERM and SIGUSR1 end this process at once, with exit code 75.

    Nothing needs to be saved first: a run that is killed resumes to the same weights. The other
    processes of the run end with this one. In a scope of `stoppable` its handlers stay: the
    command, as `diffem erase`, has a run of its own in a folder that it removes.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # Python lets the main thread alone install them
    for number in STOP_SIGNALS:
        signal.signal(number, _stoppable[-1] if _stoppable else _handle)


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Opens a scope in which Ctrl-C ends this process at once too, with exit code 130.

    A process that ignores Ctrl-C, as one in a shell's background, goes on ignoring it.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _handle)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


@contextmanager
def stoppable() -> Iterator[None]:
    """Opens a scope that Ctrl-C, SIGTERM and SIGHUP leave as an error does: by its `finally`.

    Raises:
        SystemExit: With 128 plus the signal's number, after one line, when one of them arrives.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for other in before:  # a second one must not interrupt the cleanup
            signal.signal(other, signal.SIG_IGN)
        _write_last(f"stopped by {signal.Signals(number).name}; start the same command again")
        sys.exit(128 + number)

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    }
    _stoppable.append(stop)
    try:
        yield
    finally:
        _stoppable.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


_stoppable: list[Callable[[int, FrameType | None], NoReturn]] = []
"""What handles signals in the scopes of `stoppable` that are open."""


def watch_signals() -> None:
    """Handles signals while the main thread waits outside Python, as in a collective."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            for number in os.read(read, 1):
                if signal.getsignal(number) is _handle:
                    _handle(number, None)

    threading.Thread(target=watch, name="signals", daemon=True).start()


@contextmanager
def exit_with_parent() -> Iterator[None]:
    """Opens a scope in which this process, a rank or a sweep's job, does not outlive its parent.

    On Linux the kernel kills it, however the parent ends. A process that a user started has no
    such parent and is left alone.
    """
    elastic = "TORCHELASTIC_RUN_ID" in os.environ  # all processes of torchrun are its children
    given = os.environ.get(PARENT)
    if elastic or given:
        set_parent_death_signal(os.getppid() if elastic or not given else int(given))
    os.environ[PARENT] = str(os.getpid())  # for the ranks and jobs that this process starts
    try:
        yield
    finally:
        os.environ.pop(PARENT)
        if given:
            os.environ[PARENT] = given


def set_parent_death_signal(parent: int) -> None:
    """Has the kernel kill this process when its parent ends (Linux only).

    Arguments:
        parent: The parent's process id. If it has ended already, this process exits.
    """
    if sys.platform != "linux":
        return
    import ctypes  # the handlers of signals are installed before what takes time

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        exit_now(
            f"stopped: process {parent}, which started this one, has ended (if none did: unset "
            f"{PARENT}); {RESUME_HINT}",
            RESUMABLE,
        )


def _handle(number: int, frame: FrameType | None) -> None:
    if not _stopping.acquire(blocking=False):
        return  # the handler and the watching thread can both get here
    code = INTERRUPTED if number == signal.SIGINT else RESUMABLE
    if global_rank() == 0:
        # torchrun sends SIGTERM too, when another process of the run has died.
        exit_now(f"stopped by {signal.Signals(number).name}; {RESUME_HINT}", code)
    os._exit(code)


_stopping = threading.Lock()


def exit_now(line: str, code: int) -> NoReturn:
    """Writes a last line to stderr and ends this process at once, without any cleanup."""
    _write_last(line)
    for function in at_exit:
        with suppress(OSError):
            function(line)
    os._exit(code)


def silence(stream: IO[str]) -> None:
    """Has what is written to a stream go nowhere from now on, since nobody reads it any more."""
    with suppress(OSError):  # a stream of a test has no descriptor
        descriptor, nowhere = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Opens a scope that ends without a traceback when stdout's reader has gone, as `| head` does.

    Raises:
        SystemExit: With code 1, then.
    """
    out = sys.stdout
    try:
        try:
            yield
        finally:
            if out is not None:  # as after `>&-`
                out.flush()
    except BrokenPipeError:
        if out is None or not _is_left(out):  # another pipe broke
            raise
        silence(out)
        sys.exit(1)


def _is_left(stream: IO[str]) -> bool:
    """Returns whether a stream is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _write_last(line: str) -> None:
    """Writes a line to stderr, if it is open: Ctrl-C ends the `tee` behind a pipe first."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())  # a signal may arrive in the middle of a print


def report_error(text: str) -> None:
    """Prints an error to stderr, and passes it to torchrun, whose own report comes last."""
    with suppress(BrokenPipeError):  # the error itself still ends the process with its code
        print(text, file=sys.stderr)
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        report = {"message": {"message": text, "extraInfo": {"timestamp": time.time()}}}
        with suppress(OSError):
            Path(file).write_text(json.dumps(report), encoding="utf-8")


def watch_ranks(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Ends this process, the first of a run, as soon as a rank that it started has failed.

    Arguments:
        processes: The ranks, from rank 1 on.
    """
    while None in (codes := [process.poll() for process in processes]) or any(codes):
        for rank, code in enumerate(codes, start=1):
            if code == 1:  # the rank has printed its error
                os._exit(1)
            if code in (RESUMABLE, INTERRUPTED):  # this process gets the same signal
                time.sleep(WATCH_SECONDS)
            if code:
                how = f"by {signal_name(-code)}" if code < 0 else f"with exit code {code}"
                exit_now(f"error: process {rank} of the run was ended {how}; {RESUME_HINT}", 1)
        time.sleep(WATCH_SECONDS)
