"""The page of a run while it runs: written after each round, and however the run ends."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffem.report.page import write_run_page
from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.runtime.rank import global_rank
from diffem.runtime.signals import at_exit
from diffem.storage.run_dir import PAGE
from diffem.storage.status import RunStatus, State, of_error, write_ended


class LivePage:
    """Writes the page of a run that this process trains or evaluates.

    Arguments:
        run_dir: The run directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._writing = threading.Lock()
        self._failed = False

    @contextmanager
    def following(self) -> Iterator[None]:
        """Opens the scope of a run, whose page says how it ended however it ends.

        A process that is killed can say nothing: its page stays as it was after the last round.
        """
        if global_rank():
            yield
            return
        at_exit.append(self._on_exit)
        try:
            self.write(RunStatus(State.RUNNING))
            yield
        except BaseException as error:
            if not isinstance(error, SystemExit) or error.code not in (0, None):
                self._end(of_error(error))
            raise
        finally:
            at_exit.remove(self._on_exit)

    def write(self, status: RunStatus) -> None:
        """Writes the page. A failure is a warning, once: no run ends for its page.

        Arguments:
            status: Where the run is.
        """
        # A signal's handler interrupts this process anywhere, and must not wait for it.
        if self._failed or not self._writing.acquire(blocking=False):
            return
        try:
            write_run_page(self.run_dir, status)
        except Exception as error:
            self._failed = True
            warn(f"{self.run_dir / PAGE} is not written: {type(error).__name__}: {error}")
        finally:
            self._writing.release()

    def _on_exit(self, line: str) -> None:
        """Says in the run directory with which last line the process ends."""
        state = State.STOPPED if line.startswith("stopped") else State.FAILED
        self._end(RunStatus(state, line))

    def _end(self, status: RunStatus) -> None:
        """Says in the run directory how the process ends."""
        with suppress(OSError, UserError):  # as on a full disk
            write_ended(self.run_dir, status)
        self.write(status)
