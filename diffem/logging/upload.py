"""Uploads an offline W&B run while it is written, in a process beside the one that writes it.

The process that trains never waits for a server. This file, run as a program, runs W&B's own
`wandb beta sync --live`, and starts it again where it gives up; it ends soon after its standard
input, which is closed by the process that trains, or by the kernel if that one was killed.
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

LAST = 5  # seconds that an upload may go on after the run's end
WAIT = 6  # seconds in which it has ended
AGAIN = 30  # seconds until an upload that gave up is tried again


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
            start_new_session=True,  # Ctrl-C ends the run, and then there is more to upload
        )

    def close(self) -> bool:
        """Ends the upload, within WAIT seconds, and returns whether it was whole."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(WAIT)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        return is_whole(self.folder)


def is_whole(folder: Path) -> bool:
    """Returns whether W&B has all of an offline run."""
    return any(folder.glob("*.wandb.synced"))


def upload(folder: Path) -> None:
    """Uploads a run until it is whole, or standard input has ended LAST seconds ago."""
    log = folder / "logs" / "upload.log"
    log.parent.mkdir(exist_ok=True)
    process, started, told = _start(folder, log), time.monotonic(), None
    while not select.select([sys.stdin], [], [], 1)[0]:
        gave_up = process.poll() is not None and not is_whole(folder)
        if gave_up and time.monotonic() > started + AGAIN:
            process, started = _start(folder, log), time.monotonic()
        told = told or _tell(log)
    with suppress(subprocess.TimeoutExpired):
        process.wait(LAST)
    told = told or _tell(log)
    os.killpg(0, signal.SIGKILL)  # W&B's processes, and this one


def _tell(log: Path) -> str | None:
    """Says where the run is to be seen, once W&B has said so."""
    found = re.search(r"View run .*?at (http\S+)", log.read_text(errors="replace"))
    if found:
        print(f"W&B: {found[1]}", file=sys.stderr, flush=True)
    return found and found[1]


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
