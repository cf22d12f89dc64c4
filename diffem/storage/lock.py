"""One writer a folder: a process locks it, and the lock ends with the process.

FOLDER/.lock         is locked by flock, which the kernel ends however the process ends
FOLDER/.lock.owner   where the file system has no flock, as some shared ones: names the host and
                     the process. It is created with O_EXCL and removed when the process ends.
                     What a killed process left is taken over on the same host; from another host
                     nobody can tell whether it lives, so the message names the file to remove.
"""

import atexit
import errno
import fcntl
import json
import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffem.runtime.errors import UserError, usable
from diffem.runtime.signals import at_exit
from diffem.storage.atomic import write_text

LOCK = ".lock"
OWNER = ".lock.owner"
TAKEOVER = ".lock.takeover"
NAMES = (LOCK, OWNER, TAKEOVER)
LOOKED = 0.2  # seconds within which one that only looks lets the lock go again
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_held: dict[Path, int] = {}  # the open file of each folder that this process has locked


def lock_folder(folder: Path, key: str) -> None:
    """Locks a folder for this process, until `unlock_folder` or the process's end.

    Arguments:
        folder: A folder that exists.
        key: What names it, for the message, as in "run_dir".

    Raises:
        UserError: If another process has locked it, it cannot be written, or a file of the lock
            is a link or no regular file.
    """
    if folder in _held:
        return
    with usable(key, folder):
        file = _open(folder / LOCK, key)
        try:
            _lock(file, folder, key)
        except BaseException:
            os.close(file)
            raise
    _held[folder] = file


def unlock_folder(folder: Path) -> None:
    """Lets other processes write a folder that this process has locked, if it has."""
    if folder in _held:
        if _owner(folder / OWNER) == _this_process():
            (folder / OWNER).unlink(missing_ok=True)
        os.close(_held.pop(folder))


def holds_lock(folder: Path) -> bool:
    """Returns whether this process has locked a folder."""
    return folder in _held


def is_locked(folder: Path) -> bool:
    """Returns whether a process is writing a folder; nothing is created, and nobody waits.

    Arguments:
        folder: A folder, which may be absent.
    """
    if folder in _held:
        return True
    if (folder / OWNER).exists():
        owner = _owner(folder / OWNER)
        return owner is None or not _is_gone(owner)
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, and for an instant: two that look do not see one another.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system has no flock, and there is no owner
        return False
    finally:
        os.close(file)
    return False


def _open(path: Path, key: str) -> int:
    """Opens a file of a lock, without following a link or waiting for a FIFO's other end."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _not_a_file(path, key) from error
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise _not_a_file(path, key)
    return file


def _not_a_file(path: Path, key: str) -> UserError:
    return UserError(f"{path} is no regular file; remove it, or choose another {key}")


def _lock(file: int, folder: Path, key: str) -> None:
    """Locks an open file, for which it waits while others only look (`is_locked`).

    Raises:
        UserError: If another process has locked it.
    """
    end = time.monotonic() + LOOKED
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise _taken(folder, key, "another process") from error
            time.sleep(LOOKED / 20)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            _own(folder, key)
            return


def _own(folder: Path, key: str) -> None:
    """Locks a folder by the file OWNER.

    Raises:
        UserError: If another process has.
    """
    path = folder / OWNER
    if _create(path):
        return
    owner = _owner(path)
    if owner is None or not _is_gone(owner):
        who = "another process" if owner is None else "process {pid} on {host}".format_map(owner)
        raise _taken(folder, key, f"{who} (if it has ended, remove {path})")
    # Of several processes that find the owner gone, the one that creates this file takes over.
    takeover = folder / TAKEOVER
    try:
        os.close(os.open(takeover, os.O_CREAT | os.O_EXCL))
    except FileExistsError as error:
        raise _taken(folder, key, f"another process (if none is, remove {takeover})") from error
    try:
        if _owner(path) != owner:
            raise _taken(folder, key, "another process")
        write_text(path, json.dumps(_this_process()))
    finally:
        takeover.unlink(missing_ok=True)
    _remove_at_exit(path)


def _create(path: Path) -> bool:
    """Creates the file that names this process; returns False if there is one."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(file, json.dumps(_this_process()).encode())
        os.fsync(file)
    finally:
        os.close(file)
    _remove_at_exit(path)
    return True


def _remove_at_exit(path: Path) -> None:
    """Removes the file that names this process when it ends, unless it is killed."""

    def remove(_: str = "") -> None:
        if _owner(path) == _this_process():
            path.unlink(missing_ok=True)

    atexit.register(remove)
    at_exit.append(remove)


def _taken(folder: Path, key: str, who: str) -> UserError:
    return UserError(f"{key}={folder} is being written by {who}; wait for it, or choose another")


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "start": _start(pid)}


def _host() -> str:
    """Returns this host's name; containers may share one, but not the numbers of processes."""
    namespace = Path("/proc/self/ns/pid")
    where = f" ({os.readlink(namespace)})" if namespace.is_symlink() else ""
    return f"{socket.gethostname()}{where}"


def _owner(path: Path) -> dict[str, Any] | None:
    """Returns what a lock's file says of its process; None if it cannot be read."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(owner, dict) and owner.keys() == {"host", "pid", "start"}
    return owner if ours and type(owner["pid"]) is int and owner["pid"] > 0 else None


def _is_gone(owner: dict[str, Any]) -> bool:
    """Returns whether a process of this host has ended, also if its number was given again."""
    if owner["host"] != _host():
        return False
    with suppress(PermissionError):  # of another user: it lives
        try:
            os.kill(owner["pid"], 0)
        except (ProcessLookupError, OverflowError):
            return True
    return _start(owner["pid"]) != owner["start"]


def _start(pid: int) -> str | None:
    """Returns when a process was started, in ticks since this boot; None where /proc is not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return f"{boot} {text.rpartition(')')[2].split()[19]}"
