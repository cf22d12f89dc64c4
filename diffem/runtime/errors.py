"""Errors that are caused by user input, and checks that raise them."""

import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
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
LONGEST = 1000  # characters of a path in a message

LARGEST_COUNT = 2**31 - 1
SMALLEST, LARGEST = 1e-18, 1e18  # their squares, and the inverses of these, are finite in float32


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
        if not (above or (folder in path.parents and error.errno != errno.ENOENT)):
            raise
        raise UserError(
            f"{key}={_shown(folder)} cannot be written ({error.strerror}: {_shown(path)}); choose "
            f"another {key}"
        ) from error


def _shown(path: Path) -> str:
    """Returns a path, shortened if its names are longer than a file system allows."""
    text = str(path)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def check_count(
    name: str, value: object, minimum: int = 1, *, maximum: int = LARGEST_COUNT
) -> int:
    """Returns a value that is a whole number of at least a minimum.

    Arguments:
        name: The setting's name, for the message.
        value: The value.
        minimum: The smallest value that is allowed.
        maximum: The largest value that is allowed.

    Raises:
        UserError: If the value is no such number.
    """
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or number < minimum:
        raise UserError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
    if number > maximum:
        raise UserError(f"{name} must be a whole number of at most {maximum}, got {value!r}")
    return number


def check_positive(
    name: str, value: object, smallest: float = SMALLEST, largest: float = LARGEST
) -> float:
    """Returns a value that is a positive number whose square is one in float32 too.

    Arguments:
        name: The setting's name, for the message.
        value: The value.
        smallest: The smallest value that is allowed.
        largest: The largest value that is allowed.

    Raises:
        UserError: If the value is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{name} must be a positive number, got {value!r}")
    if not smallest <= value <= largest:
        raise UserError(f"{name} must be in [{smallest:g}, {largest:g}], got {value!r}")
    return float(value)


def check_fraction(name: str, value: object) -> float:
    """Returns a value that is a number in [0, 1).

    Arguments:
        name: The setting's name, for the message.
        value: The value.

    Raises:
        UserError: If the value is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{name} must be a number in [0, 1), got {value!r}")
    return float(value)
