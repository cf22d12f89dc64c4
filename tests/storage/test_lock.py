"""One process writes a folder, also where the file system has no flock (issue 11, B7)."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT

from diffem.runtime.errors import UserError
from diffem.storage.lock import OWNER, lock_folder, unlock_folder

NO_FLOCK = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]

# Locks a folder, as another process, and says how it went; then it waits, or ends at once.
OTHER = """
import errno, fcntl, sys
from pathlib import Path
from diffem.storage.lock import lock_folder

def no_flock(file, operation):
    raise OSError(errno.ENOLCK, "No locks available")

if "noflock" in sys.argv:
    fcntl.flock = no_flock
try:
    lock_folder(Path(sys.argv[1]), "run_dir")
    print("locked", flush=True)
except ValueError as error:
    print(error, flush=True)
sys.stdin.read()
"""


def other(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Returns another process that has tried to lock a folder, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder), *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def no_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)


@pytest.mark.parametrize("way", ["flock", "noflock"])
def test_a_second_process_is_refused_until_the_first_has_ended(way: str, tmp_path: Path) -> None:
    first, said = other(tmp_path, way)
    assert said == "locked"
    second, said = other(tmp_path, way)
    second.communicate()
    assert said.startswith(f"run_dir={tmp_path} is being written by ")
    assert way == "flock" or f"process {first.pid} on " in said
    first.communicate()  # it ends by itself, and leaves no owner
    assert not (tmp_path / OWNER).exists()
    third, said = other(tmp_path, way)
    third.communicate()
    assert said == "locked"


@pytest.mark.parametrize("number", NO_FLOCK)
def test_a_killed_process_holds_nothing_up(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, said = other(tmp_path, "noflock")
    assert said == "locked"
    first.kill()
    first.communicate()
    assert (tmp_path / OWNER).exists()
    no_flock(monkeypatch, number)
    lock_folder(tmp_path, "run_dir")
    assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    lock_folder(tmp_path, "run_dir")  # it is this process's already
    unlock_folder(tmp_path)
    assert not (tmp_path / OWNER).exists()


@pytest.mark.parametrize(
    "owner",
    [
        {"host": "another", "pid": 1, "start": None},  # nobody can tell from here
        {"host": 7, "pid": "x"},
        {},
        None,
    ],
)
def test_an_owner_that_may_live_is_named_with_its_file(
    owner: dict[str, object] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_flock(monkeypatch, errno.ENOSYS)
    (tmp_path / OWNER).write_text("" if owner is None else json.dumps(owner))
    with pytest.raises(UserError, match=f"if it has ended, remove {tmp_path / OWNER}"):
        lock_folder(tmp_path, "run_dir")
    (tmp_path / OWNER).unlink()  # the advice
    lock_folder(tmp_path, "run_dir")
    unlock_folder(tmp_path)


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "loop"])
def test_a_lock_that_is_no_file_is_refused_and_not_written(what: str, tmp_path: Path) -> None:
    """Issue 11, A4 and A5: a link had its target emptied, a FIFO hung."""
    thesis, lock = tmp_path / "thesis.tex", tmp_path / "run" / ".lock"
    thesis.write_text("precious")
    lock.parent.mkdir()
    if what == "fifo":
        os.mkfifo(lock)
    elif what == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(thesis if what == "link" else lock)
    with pytest.raises(UserError, match=r"\.lock is no regular file; remove it, or choose anoth"):
        lock_folder(tmp_path / "run", "run_dir")
    assert thesis.read_text() == "precious"
