"""Files: whole or absent when written, verified and never executed when read."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from diffem.runtime.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
FREE_SOME = "free some and start the same command again: it goes on from where it was"
# torch lets these overrule what a call of torch.load asks for.
OVERRIDES = ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD")


def sha256(path: Path) -> str:
    """Returns the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matches(path: Path, digest: object) -> bool:
    """Returns whether a file can be read and has a sha256."""
    try:
        return sha256(path) == digest
    except OSError:
        return False


def write_file(path: Path, write: Callable[[IO[bytes]], object], *, size: int = 0) -> None:
    """Writes a file, whole or not at all, and durably.

    The bytes go to a temporary name in the same folder, are synced, and renamed into place.

    Arguments:
        path: The file.
        write: Writes the bytes.
        size: The number of bytes to set aside first, so that a full disk is known at once.

    Raises:
        UserError: If the disk is full; what stood at the path stays.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with disk_full_told(path), temporary.open("wb") as file:
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    sync_folder(path.parent)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a JSON object with its own checksum, whole or not at all."""
    text = json.dumps({**record, "sha256": _seal(record)}, indent=1)
    write_file(path, lambda file: file.write(text.encode()))


def read_record(path: Path) -> dict[str, Any] | None:
    """Returns what `write_record` wrote; None if the file is not there, or is damaged."""
    try:
        record = json.loads(path.read_bytes())
        seal = record.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return record if seal == _seal(record) else None


def _seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Syncs a folder, so that the names in it are durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_full_told(path: Path) -> Iterator[None]:
    """Opens a scope in which a full disk is a user's mistake."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save tells of a failed write by a RuntimeError.
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL or (number is None and free_bytes(path.parent) == 0):
            raise UserError(
                f"no space left on the disk while writing {path}; {FREE_SOME}"
            ) from error
        raise


def free_bytes(folder: Path) -> int:
    """Returns the bytes that a user may still write in a folder."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def load_plain(path: Path) -> Any:  # noqa: ANN401
    """Returns what torch.save wrote, on the CPU, if it is tensors and plain types.

    Nothing is executed.

    Arguments:
        path: A local file.

    Raises:
        pickle.UnpicklingError: If the file holds anything else.
    """
    import torch  # takes seconds: only where it is used

    kept = {name: os.environ.pop(name) for name in OVERRIDES if name in os.environ}
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    finally:
        os.environ.update(kept)
