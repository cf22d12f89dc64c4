"""Atomic, checksummed checkpoints; the previous version is kept; loading executes no code.

checkpoints/last.ckpt            the newest of an M-step
checkpoints/last.previous.ckpt   the one before it
checkpoints/last.e_step.ckpt     the state before the newest round's E-step, and
                                 last.e_step.previous.ckpt
checkpoints/SHA256SUMS           digests in the order of saving. A digest is written before its
                                 checkpoint is renamed into place, and twice: SHA256SUMS.copy
"""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.storage.atomic import load_plain, sha256, sync_folder, write_file, write_text
from diffem.storage.identity import RunIdentity

SUMS = ("SHA256SUMS", "SHA256SUMS.copy")
KEPT = 4  # digests of a name: two files, and what a kill between two renames leaves


def save_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Writes a checkpoint atomically; the newest that was there becomes the previous one.

    Arguments:
        checkpoint: Tensors and plain types.
        path: The local file, as in `checkpoints/last.ckpt`.

    Raises:
        UserError: If the path is not local, or the disk is full; the newest checkpoint stays.
    """
    import torch  # takes seconds: only where it is used

    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    for left in path.parent.glob(f"{new.name}.tmp*"):
        left.unlink()  # of a process that was killed: only one process writes
    digest = hashlib.sha256()
    write_file(new, lambda file: torch.save(checkpoint, _hashing(file, digest)))
    record_digest(path, digest.hexdigest())
    if path.exists():
        path.replace(previous(path))
    new.replace(path)
    sync_folder(path.parent)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Returns a checkpoint, on the CPU; the one before it if the newest is damaged.

    Arguments:
        path: The local file, as in `checkpoints/last.ckpt`.

    Raises:
        UserError: If the path is not local, no intact checkpoint is left, or the file holds more
            than tensors and plain types.
    """
    path = local_path(path)
    for file in _intact([path, previous(path)]):
        return _load(file)
    raise UserError(f"{path}: no intact checkpoint is left; start the run again in a new run_dir")


def remove_checkpoint(path: str | Path) -> None:
    """Removes a checkpoint and the one before it.

    Raises:
        UserError: If the path is not local.
    """
    for file in (local_path(path), previous(local_path(path))):
        file.unlink(missing_ok=True)


class _Hashing:
    def __init__(self, file: IO[bytes], digest: "hashlib._Hash") -> None:
        self.file = file
        self.digest = digest
        self.flush = file.flush

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


def _hashing(file: IO[bytes], digest: "hashlib._Hash") -> IO[bytes]:
    """Returns a file that hashes the bytes it is given, before the disk can change them."""
    return cast(IO[bytes], _Hashing(file, digest))  # torch.save calls no other method


def resumable(
    path: Path, round_digest: Callable[[int], str | None], identity: RunIdentity | None = None
) -> Path | None:
    """Returns the checkpoint to resume from; None to start from the init.

    That is the newest intact checkpoint whose round is intact too. While at most one round was
    drawn by a network, the run can also start from the init, which draws the same round 0 again.

    Arguments:
        path: The checkpoint, as in `checkpoints/last.ckpt`; it may be missing if the process was
            killed between two renames.
        round_digest: Returns the hash of a round on the disk; None if it is missing or damaged.
        identity: The run that checkpoints must be of; None for any.

    Raises:
        UserError: If a checkpoint is of another run, or none is left to resume from.
    """
    names = (path, before_e_step(path))
    files = [file for name in names for file in (name, previous(name)) if file.is_file()]
    for file in _intact(files):
        held = _load(file)
        round, bound = held["em_state"]["round"], held.get("run", {})
        if identity is not None and not identity.matches(bound):
            raise UserError(
                f"{file} is of another run, with other settings or measurements; put this run's "
                f"own {path.parent.name} back, or remove the folder: the run then starts from the "
                "init, and keeps the rounds that it would draw again"
            )
        digest = round_digest(round) if round >= 0 else None
        if round < 0 or (digest is not None and digest == bound.get("round_sha256")):
            return file
        warn(f"round {round} is damaged; {file} cannot be used, looking for an earlier checkpoint")
    if previous(before_e_step(path)).is_file():
        raise UserError(
            f"{path.parent}: no checkpoint is left that is intact, with its round; start the run "
            "again in a new run_dir"
        )
    if files:
        warn(f"{path.parent} has no intact checkpoint; starting from the init")
    return None


def _intact(files: list[Path]) -> list[Path]:
    """Returns the files whose digest was recorded, the newest first; warns of the others."""
    saved = {file: sha256(file) for file in files if file.is_file()}
    known = digests(files[0].parent) if files else []
    for file in saved:
        if saved[file] not in known:
            warn(f"{file} is damaged; another checkpoint is used")
    intact = [file for file in saved if saved[file] in known]
    return sorted(intact, key=lambda file: -known.index(saved[file]))


def _load(file: Path) -> dict[str, Any]:
    try:
        return load_plain(file)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} holds more than tensors and plain types and is not read; use a checkpoint "
            "that this project wrote"
        ) from error


def check_digest(file: Path) -> None:
    """Refuses a checkpoint that differs from the digest recorded beside it, if there is one.

    Raises:
        UserError: If the file is damaged.
    """
    name = file.name.replace(".previous", "")
    known = [line.split()[0] for line in _lines(file.parent) if line.endswith(f"  {name}")]
    if known and sha256(file) not in known:
        raise UserError(
            f"{file} is damaged: its sha256 is not in {SUMS[0]} beside it; give another checkpoint"
        )


def previous(path: Path) -> Path:
    """Returns the path of the checkpoint before the newest."""
    return path.with_suffix(f".previous{path.suffix}")


def before_e_step(path: Path) -> Path:
    """Returns the path of the checkpoint from which the newest round's E-step can be repeated."""
    return path.with_suffix(f".e_step{path.suffix}")


def local_path(path: str | Path) -> Path:
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


def was_saved(path: Path) -> bool:
    """Returns whether a checkpoint was saved under this path, whether or not it is there still."""
    return path.is_file() or any(line.endswith(f"  {path.name}") for line in _lines(path.parent))


def record_digest(path: Path, digest: str) -> None:
    """Adds a checkpoint's digest to its folder's SHA256SUMS, durably.

    Arguments:
        path: The checkpoint.
        digest: Its hexadecimal sha256.
    """
    lines = _lines(path.parent)
    old = [line for line in lines if line.endswith(f"  {path.name}")][: 1 - KEPT]
    kept = [line for line in lines if line not in old]
    text = "".join(f"{line}\n" for line in [*kept, f"{digest}  {path.name}"])
    for sums in SUMS:
        write_text(path.parent / sums, text)


def _lines(folder: Path) -> list[str]:
    """Returns the lines of SHA256SUMS, the oldest first; one of the two copies may be damaged."""
    ages: dict[str, int] = {}
    for sums in (folder / name for name in SUMS):
        text = sums.read_text(errors="replace") if sums.is_file() else ""
        lines = [line for line in text.splitlines() if len(line.split()) == 2]
        for age, line in enumerate(reversed(lines)):
            ages[line] = max(age, ages.get(line, 0))
    return sorted(ages, key=lambda line: -ages[line])
