"""Errors that are caused by user input."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNUSABLE = (  # why a folder cannot be made or written
    errno.EACCES,
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
FULL = (errno.ENOSPC, errno.EDQUOT)  # that the disk, or the user's share of it, is full
TEMPORARY = ".tmp"  # begins the suffix of files that are made, as in /proc none can be
LONGEST = 1000  # characters of a path in a message


class UserError(ValueError):
    """An error caused by user input; commands show its message without a traceback.

    The message is one sentence that names the key or file, the value, what is allowed and what to
    do.
    """


@contextmanager
def usable(key: str, folder: Path) -> Iterator[None]:
    """Opens a scope in which a folder that cannot be made or written raises a UserError.

    Errors of files elsewhere pass, as does a file in the folder that should be there and is not.

    Arguments:
        key: What names the folder, for the message, as in "run_dir".
        folder: The folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNUSABLE or not isinstance(error.filename, str | os.PathLike):
            raise
        folder, path = folder.absolute(), Path(error.filename).absolute()
        above = path == folder or path in folder.parents
        missing = error.errno == errno.ENOENT and not path.suffix.startswith(TEMPORARY)
        if not (above or (folder in path.parents and not missing)):
            raise
        raise UserError(
            f"{key}={_shown(folder)} cannot be written ({error.strerror}: {_shown(path)}); choose "
            f"another {key}"
        ) from error


def _shown(path: Path) -> str:
    """Returns a path, shortened if its names are longer than a file system allows."""
    text = str(path)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
