"""Uploads an offline W&B run while it is written, in a process beside the one that writes it.

The training process never waits for a server. This file, run as a program, runs W&B's own
`wandb beta sync --live` and restarts it if it gives up. It ends soon after its standard input is
closed: by the training process, or by the kernel if that process is killed.
"""

import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

LAST_SECONDS = 5  # that an upload may take after the run's end
WAIT_SECONDS = 6  # until an upload that has not ended is killed
RETRY_SECONDS = 30  # until an upload that gave up is started again


class Upload:
    """The upload of a run that is being written.

    Arguments:
        folder: The folder of the offline run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C ends the run, and its last lines are uploaded
        )

    def close(self) -> bool:
        """Ends the upload within WAIT_SECONDS; returns whether all of the run was uploaded."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        return is_uploaded(self.folder)


def is_uploaded(folder: Path) -> bool:
    """Returns whether W&B has all of an offline run."""
    return any(folder.glob("*.wandb.synced"))


def upload(folder: Path) -> None:
    """Uploads a run until LAST_SECONDS after standard input is closed.

    Arguments:
        folder: The folder of the offline run.
    """
    log = folder / "logs" / "upload.log"
    log.parent.mkdir(exist_ok=True)
    process, started, shown = _start(folder, log), time.monotonic(), False
    while not select.select([sys.stdin], [], [], 1)[0]:
        gave_up = process.poll() is not None and not is_uploaded(folder)
        if gave_up and time.monotonic() > started + RETRY_SECONDS:
            process, started = _start(folder, log), time.monotonic()
        shown = shown or _show_address(log)
    with suppress(subprocess.TimeoutExpired):
        process.wait(LAST_SECONDS)
    shown = shown or _show_address(log)
    os.killpg(0, signal.SIGKILL)  # W&B's processes, and this one


def _show_address(log: Path) -> bool:
    """Prints the run's address and returns True, once W&B's output has it."""
    found = re.search(
        r"View run .*?at (http\S+)", log.read_text(encoding="utf-8", errors="replace")
    )
    if found:
        print(f"W&B: {found[1]}", file=sys.stderr, flush=True)
    return found is not None


def _start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "wandb", "beta", "sync", "--live", "--yes", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=folder / "logs",  # where W&B's command leaves its own logs
        )


if __name__ == "__main__":
    upload(Path(sys.argv[1]))
