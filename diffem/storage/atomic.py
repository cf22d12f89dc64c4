"""Atomic, durable writes of files; reading verifies checksums and executes no code."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from diffem.runtime.errors import FULL, UserError
from diffem.storage.strict_json import from_json

FREE_SOME = "free some and start the same command again"
# These override the argument weights_only of torch.load.
TORCH_VARIABLES = ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD")


def sha256(path: Path) -> str:
    """Returns the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matches(path: Path, digest: object) -> bool:
    """Returns whether a file can be read and has the sha256 `digest`."""
    try:
        return sha256(path) == digest
    except OSError:
        return False


def write_file(path: Path, write: Callable[[IO[bytes]], object], *, size: int = 0) -> None:
    """Writes a file atomically and durably.

    The bytes are written to a temporary file in the same folder, synced, and renamed into place.

    Arguments:
        path: The file.
        write: Writes the bytes.
        size: The number of bytes to allocate first, so that a full disk is noticed at once.

    Raises:
        UserError: If the disk is full; the file that was there stays.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with report_full_disk(path), temporary.open("wb") as file:
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


def write_text(path: Path, text: str) -> None:
    """Writes a text atomically and durably, in UTF-8; see `write_file`."""
    write_file(path, lambda file: file.write(text.encode()))


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a folder of files atomically and durably: it is there with all of them, or is not.

    Arguments:
        path: The folder, which must not exist.
        write: Writes the files into the folder that it is given.

    Raises:
        UserError: If the disk is full.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        temporary.mkdir()
        write(temporary)
        sync_folder(temporary)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(path.parent)


def is_temporary(path: Path) -> bool:
    """Returns whether a path is named like the temporary ones of this module."""
    return re.search(r"\.tmp\d+$", path.name) is not None


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a JSON object with its own checksum, atomically."""
    text = json.dumps({**record, "sha256": _checksum(record)}, indent=1)
    write_text(path, text)


def read_record(path: Path) -> dict[str, Any] | None:
    """Returns what `write_record` wrote; None if the file is absent or damaged."""
    try:
        record = json.loads(path.read_bytes())
        checksum = record.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return record if checksum == _checksum(record) else None


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file, without its checksum if it has one.

    Returns:
        None if the file is absent, holds no object, or differs from its checksum.
    """
    try:
        record = from_json(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or "sha256" not in record:
        return record if isinstance(record, dict) else None
    checksum = record.pop("sha256")
    return record if checksum == _checksum(record) else None


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Syncs a folder, so that renames in it are durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DiskFull(UserError):
    """No space was left on the disk while a file was written.

    Arguments:
        path: The file.
        advice: What to do, or what is lost.
    """

    def __init__(self, path: Path, advice: str = FREE_SOME) -> None:
        super().__init__(f"no space left on the disk while writing {path}; {advice}")
        self.path = path


@contextmanager
def report_full_disk(path: Path) -> Iterator[None]:
    """Opens a scope in which a full disk raises a UserError that names the path."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save raises a RuntimeError without errno for a failed write.
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL or (number is None and free_bytes(path.parent) == 0):
            raise DiskFull(path) from error
        raise


def free_bytes(folder: Path) -> int:
    """Returns the bytes that a user may still write in a folder."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def load_plain(path: Path) -> Any:  # noqa: ANN401
    """Returns what torch.save wrote, on the CPU, if it is tensors and plain types.

    No code in the file is executed.

    Arguments:
        path: A local file.

    Raises:
        pickle.UnpicklingError: If the file holds anything else.
    """
    import torch  # takes seconds: only where it is used

    kept = {name: os.environ.pop(name) for name in TORCH_VARIABLES if name in os.environ}
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    finally:
        os.environ.update(kept)
