"""The processes of one run find each other in bounded time, and end without an abort."""

import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from diffem.runtime.errors import UserError
from diffem.runtime.progress import say
from diffem.runtime.rank import SRUN, external_processes, global_rank, starter_of
from diffem.runtime.signals import RESUMABLE, exit_now

ERROR_OF_A_TASK = RESUMABLE + 1
"""The exit code of an error in one of srun's tasks. srun ends the others, which exit with 75, and
passes on the highest code: with 1, an error would look like a run to requeue, again and again."""
NOTE_SECONDS = 20.0  # until a line says what a process waits for
LIMIT_SECONDS = 300.0  # until it ends; processes that read the data differ by less
POLL_SECONDS = 0.2


def expect_processes() -> None:
    """Checks where the processes meet that torchrun or srun started, and watches that they do.

    torch waits for half an hour, with a warning a second, where an address is wrong. A thread
    ends the process much sooner, with a sentence, unless all processes have met.

    Raises:
        UserError: If the address of the first process does not resolve.
    """
    if (external_processes() or 1) == 1:
        return
    if starter_of(os.environ) == SRUN:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        environment = SLURMEnvironment()  # sets the variables that are not given
        address, port = environment.main_address, str(environment.main_port)
    else:
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        socket.getaddrinfo(address, port)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"MASTER_ADDR={address}, where the processes of the run meet, does not resolve on "
            f"{socket.gethostname()} ({error}); set MASTER_ADDR to an address of the first "
            "process's machine that all machines reach"
        ) from error
    threading.Thread(target=_watch, args=(address, port), daemon=True).start()


def _watch(address: str, port: str) -> None:
    """Ends the process if the processes of the run have not met in time."""
    start, noted = time.monotonic(), False
    while not collectives_started():
        seconds = time.monotonic() - start
        if seconds > LIMIT_SECONDS:
            exit_now(
                f"error: process {global_rank()} has waited {seconds:.0f} s for the others at "
                f"MASTER_ADDR={address} MASTER_PORT={port}; set MASTER_ADDR to an address of the "
                "first process's machine that all machines reach, and start all processes",
                ERROR_OF_A_TASK if _is_task_of_several() else 1,
            )
        if seconds > NOTE_SECONDS and not noted:
            noted = True
            say(f"process {global_rank()} waits for the others at {address}, port {port}")
        time.sleep(POLL_SECONDS)


def collectives_started() -> bool:
    """Returns whether this process has met the others of its run."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


@contextmanager
def errors_above_stops() -> Iterator[None]:
    """Opens a scope in which an error of one of several tasks of srun ends with its own code.

    A process that failed because another is gone does not pass here: it ends with 1, and the
    other's code counts.

    Raises:
        SystemExit: With `ERROR_OF_A_TASK` instead of 1, or after the traceback of an exception.
    """
    if not _is_task_of_several():
        yield
        return
    try:
        yield
    except SystemExit as exit:
        if exit.code == 1:
            raise SystemExit(ERROR_OF_A_TASK) from exit
        raise
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(ERROR_OF_A_TASK) from error


def _is_task_of_several() -> bool:
    return starter_of(os.environ) == SRUN and (external_processes() or 1) > 1


@contextmanager
def end_with_collectives() -> Iterator[None]:
    """Opens a scope at whose end a process that used collectives ends at once.

    The threads of gloo can abort the process at the interpreter's end (exit code -6), after all
    work is done. So Python's own cleanup is done here, and the rest is left out.
    """
    code: int | str | None = 0
    try:
        yield
    except SystemExit as exit:
        code = exit.code
        if not collectives_started():
            raise
    if not collectives_started():
        return
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
