"""Checkpoints: whole or absent, verified, two kept of a name, plain types only.

checkpoints/last.ckpt            the newest of an M-step
checkpoints/last.previous.ckpt   the one before it
checkpoints/last.e_step.ckpt     what makes the newest round; and last.e_step.previous.ckpt
checkpoints/SHA256SUMS           digests in the order of saving; written before a checkpoint takes
                                 its name, and twice: the other is SHA256SUMS.copy
"""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.storage.atomic import load_plain, sha256, sync_folder, write_file

SUMS = ("SHA256SUMS", "SHA256SUMS.copy")
KEPT = 4  # digests of a name: two files, and what a kill between two renames leaves


class AtomicCheckpointIO(CheckpointIO):
    """Writes and reads Lightning's checkpoints on local disks."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: object = None,
    ) -> None:
        """Writes a checkpoint; the newest that was there becomes the previous one.

        Raises:
            UserError: If the path is not local, or the disk is full: the newest stays.
        """
        path = local(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        for left in path.parent.glob(f"{new.name}.tmp*"):
            left.unlink()  # of a process that was killed; but one process writes
        digest = hashlib.sha256()
        write_file(new, lambda file: torch.save(checkpoint, _summed(file, digest)))
        remember(path, digest.hexdigest())
        if path.exists():
            path.replace(previous(path))
        new.replace(path)
        sync_folder(path.parent)

    def load_checkpoint(  # type: ignore[override]
        self, path: str | Path, map_location: object = None, weights_only: object = None
    ) -> dict[str, Any]:
        """Returns the newest checkpoint that is whole; `weights_only` is forced.

        Raises:
            UserError: If the path is not local, or no whole checkpoint is left.
        """
        return load_verified(local(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint and the one before it."""
        for file in (local(path), previous(local(path))):
            file.unlink(missing_ok=True)


class _Summed:
    def __init__(self, file: IO[bytes], digest: "hashlib._Hash") -> None:
        self.file = file
        self.digest = digest
        self.flush = file.flush

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


def _summed(file: IO[bytes], digest: "hashlib._Hash") -> IO[bytes]:
    """Returns a file that sums what is meant to be in it, whatever the disk makes of that."""
    return cast(IO[bytes], _Summed(file, digest))  # torch.save calls no other method


def load_verified(path: Path) -> dict[str, Any]:
    """Returns a checkpoint, on the CPU, or the one before it if it is damaged.

    Arguments:
        path: The checkpoint, as in `checkpoints/last.ckpt`.

    Raises:
        UserError: If neither is whole, or one holds more than tensors and plain types.
    """
    for file in _whole([path, previous(path)]):
        return _load(file)
    raise UserError(
        f"{path} has no checkpoint that is whole; start the run again in a new run_dir"
    )


def resumable(path: Path, whole: Callable[[int], bool]) -> Path | None:
    """Returns where to go on from, None for the init.

    That is the newest checkpoint of which the bytes and the round are whole. As long as one round
    at most was made by a network, the init stands behind them: it makes the same again.

    Arguments:
        path: The checkpoint, as in `checkpoints/last.ckpt`; it may be missing, where a kill fell
            between two renames.
        whole: Whether a round that a checkpoint is at is on the disk, undamaged.

    Raises:
        UserError: If no checkpoint is left to go on from.
    """
    names = (path, before_e_step(path))
    files = [file for name in names for file in (name, previous(name)) if file.is_file()]
    for file in _whole(files):
        round = _load(file)["em_state"]["round"]
        if round < 0 or whole(round):
            return file
        warn(f"round {round} is damaged; a checkpoint from before it is looked for, not {file}")
    if previous(before_e_step(path)).is_file():
        raise UserError(
            f"{path.parent} has no checkpoint to go on from that is whole, with its round; start "
            "the run again in a new run_dir"
        )
    if files:
        warn(f"{path.parent} has nothing to go on from that is whole; starting from the init")
    return None


def _whole(files: list[Path]) -> list[Path]:
    """Returns the files that are what was saved, the newest first; warns of the others."""
    saved = {file: sha256(file) for file in files if file.is_file()}
    known = digests(files[0].parent) if files else []
    for file in saved:
        if saved[file] not in known:
            warn(f"{file} is damaged; another checkpoint is used")
    whole = [file for file in saved if saved[file] in known]
    return sorted(whole, key=lambda file: -known.index(saved[file]))


def _load(file: Path) -> dict[str, Any]:
    try:
        return load_plain(file)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} holds more than tensors and plain types and is not read; use a checkpoint "
            "that this project wrote"
        ) from error


def check_sum(file: Path) -> None:
    """Refuses a checkpoint that its folder's sums name, and that is damaged.

    Raises:
        UserError: If it is.
    """
    name = file.name.replace(".previous", "")
    known = [line.split()[0] for line in _lines(file.parent) if line.endswith(f"  {name}")]
    if known and sha256(file) not in known:
        raise UserError(
            f"{file} is damaged: its sha256 is not in {SUMS[0]} beside it; give another checkpoint"
        )


def previous(path: Path) -> Path:
    """Returns where the checkpoint before the newest is."""
    return path.with_suffix(f".previous{path.suffix}")


def before_e_step(path: Path) -> Path:
    """Returns where the checkpoint is that makes a round, and may have to make it again."""
    return path.with_suffix(f".e_step{path.suffix}")


def local(path: str | Path) -> Path:
    """Returns a local path.

    Raises:
        UserError: If it is a URL.
    """
    if "://" in str(path):
        raise UserError(f"checkpoints are read from local files alone, got {path}; download it")
    return Path(path)


def digests(folder: Path) -> list[str]:
    """Returns the digests of a folder's checkpoints, in the order of saving."""
    return [line.split()[0] for line in _lines(folder)]


def remember(path: Path, digest: str) -> None:
    """Adds a checkpoint's digest to the folder's sums, durably."""
    lines = _lines(path.parent)
    old = [line for line in lines if line.endswith(f"  {path.name}")][: 1 - KEPT]
    kept = [line for line in lines if line not in old]
    text = "".join(f"{line}\n" for line in [*kept, f"{digest}  {path.name}"])
    for sums in SUMS:
        write_file(path.parent / sums, lambda file: file.write(text.encode()))


def _lines(folder: Path) -> list[str]:
    """Returns the lines of the sums, the oldest first; one of the two files may be damaged."""
    ages: dict[str, int] = {}
    for sums in (folder / name for name in SUMS):
        text = sums.read_text(errors="replace") if sums.is_file() else ""
        lines = [line for line in text.splitlines() if len(line.split()) == 2]
        for age, line in enumerate(reversed(lines)):
            ages[line] = max(age, ages.get(line, 0))
    return sorted(ages, key=lambda line: -ages[line])
