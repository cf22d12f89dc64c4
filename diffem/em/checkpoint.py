"""Checkpoints: whole or absent, verified, two kept, plain types only.

checkpoints/last.ckpt            the newest
checkpoints/last.previous.ckpt   the one before it
checkpoints/SHA256SUMS           their digests; written before a checkpoint takes its name
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from diffem.em.progress import console
from diffem.error import UserError
from diffem.file import disk_full_told, load_plain, sha256, sync_folder, write_file

SUMS = "SHA256SUMS"
KEPT = 4  # digests of a name: two files, and what a kill between two renames leaves


class SafeCheckpointIO(CheckpointIO):
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
        with disk_full_told(path):
            write_file(new, lambda file: torch.save(checkpoint, file))
        remember(path, sha256(new))
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


def load_verified(path: Path) -> dict[str, Any]:
    """Returns a checkpoint, on the CPU, or the one before it if it is damaged.

    Arguments:
        path: The checkpoint, as in `checkpoints/last.ckpt`.

    Raises:
        UserError: If neither is whole, or one holds more than tensors and plain types.
    """
    known = digests(path)
    for file in (path, previous(path)):
        if not file.is_file():
            continue
        if sha256(file) not in known:
            console.print(f"warning: {file} is damaged; the checkpoint before it is used")
            continue
        try:
            return load_plain(file)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{file} holds more than tensors and plain types and is not read; use a "
                "checkpoint that this project wrote"
            ) from error
    raise UserError(
        f"{path} has no checkpoint that is whole; start the run again in a new run_dir"
    )


def resumable(path: Path) -> str | None:
    """Returns where to go on from, None if no checkpoint was saved yet.

    The newest may be missing, where a kill fell between two renames.
    """
    return str(path) if path.is_file() or previous(path).is_file() else None


def previous(path: Path) -> Path:
    """Returns where the checkpoint before the newest is."""
    return path.with_suffix(f".previous{path.suffix}")


def local(path: str | Path) -> Path:
    """Returns a local path.

    Raises:
        UserError: If it is a URL.
    """
    if "://" in str(path):
        raise UserError(f"checkpoints are read from local files alone, got {path}; download it")
    return Path(path)


def digests(path: Path) -> list[str]:
    """Returns the digests that a checkpoint, or the one before it, may have."""
    sums = path.parent / SUMS
    lines = sums.read_text().splitlines() if sums.is_file() else []
    return [line.split()[0] for line in lines if line.endswith(f"  {path.name}")]


def remember(path: Path, digest: str) -> None:
    """Adds a checkpoint's digest to the folder's sums, durably."""
    sums = path.parent / SUMS
    lines = sums.read_text().splitlines() if sums.is_file() else []
    others = [line for line in lines if not line.endswith(f"  {path.name}")]
    own = [f"{d}  {path.name}" for d in [*digests(path), digest][-KEPT:]]
    text = "".join(f"{line}\n" for line in [*others, *own])
    write_file(sums, lambda file: file.write(text.encode()))
