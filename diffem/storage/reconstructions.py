"""The reconstructions D_k on disk, and their batches. A round is complete or absent.

    reconstructions/round_003/chunk_00017.npy      float32; fixed-size chunks, the last one shorter
    reconstructions/round_003/chunk_00017.sha256   the chunk's sha256, for `sha256sum --check`
    reconstructions/round_003/locks_6f…/           one file for each chunk that a rank has taken;
                                                   removed at the commit
    reconstructions/round_003/weights.json         the hash of the weights that draw the round
    reconstructions/round_003/channel.json         the channel's parameters, where they are learned
    reconstructions/round_003/manifest.json        the commit: checksums, hashes of the weights and
                                                   of the configuration

Every file is written under a temporary name in the same folder, synced and renamed. A round exists
once its manifest does. Any process may write any chunk, in any order. A chunk that is damaged
before the commit is drawn again; damage after the commit is found when the round is opened.
"""

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor
from torch.utils.data import Dataset

from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.storage.atomic import matches, read_record, write_file, write_record

POLL_SECONDS = 0.05


class Batch(NamedTuple):
    """A training batch of reconstructions."""

    x: Tensor
    """Reconstructions, (B, *shape), float32."""
    round: int
    """The round k that they come from."""
    rows: Tensor
    """Their rows in D_k, (B,)."""


class Reconstructions(Dataset[Batch]):
    """One committed round, memory-mapped; batches are fetched as a block.

    Arguments:
        arrays: The round's chunks in order, each (chunk_size, *shape) but the last.
        round: The round k.
    """

    def __init__(self, arrays: Sequence[np.ndarray], round: int) -> None:
        self.arrays = arrays
        self.round = round
        self.chunk_size = len(arrays[0])

    def __len__(self) -> int:
        return sum(len(array) for array in self.arrays)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns the batch of the reconstructions at the indices, in their order."""
        index = np.asarray(indices)
        x = np.empty((len(index), *self.arrays[0].shape[1:]), dtype=np.float32)
        chunk = index // self.chunk_size
        for c in np.unique(chunk):
            x[chunk == c] = self.arrays[c][index[chunk == c] - c * self.chunk_size]
        return Batch(torch.from_numpy(x), self.round, torch.from_numpy(index))


class ReconstructionStore:
    """The rounds of one run.

    Arguments:
        path: The folder that holds a folder for each round.
        size: The number N of reconstructions in a round.
        chunk_size: The number of reconstructions in a chunk.
        config_hash: A hash of the run's configuration, saved in every manifest.
    """

    def __init__(self, path: Path, *, size: int, chunk_size: int, config_hash: str) -> None:
        self.path = path
        self.size = size
        self.chunk_size = chunk_size
        self.config_hash = config_hash
        self._verified: set[int] = set()  # rounds whose checksums this process has verified

    @property
    def chunks(self) -> range:
        """The numbers of a round's chunks."""
        return range(-(-self.size // self.chunk_size))

    def rows(self, chunk: int) -> slice:
        """Returns the rows of a chunk among the N."""
        return slice(chunk * self.chunk_size, min(self.size, (chunk + 1) * self.chunk_size))

    def folder(self, round: int) -> Path:
        """Returns the folder of a round."""
        return self.path / f"round_{round:03d}"

    def begin(
        self, round: int, weights_hash: str, attempt: str = "", *, first: bool = True
    ) -> None:
        """Opens a round for the chunks that a set of weights draws.

        Chunks of the same weights are kept. Those of other weights, later rounds and damaged files
        are removed.

        Arguments:
            round: The round k.
            weights_hash: The hash of the weights.
            attempt: The identifier that the processes of this E-step share.
            first: Whether this is the first process, which opens the round; the others wait.
        """
        if first:
            self._clear(round, weights_hash)
            self.folder(round).mkdir(parents=True, exist_ok=True)
            opened = {"weights_sha256": weights_hash, "attempt": attempt}
            write_record(self._weights(round), opened)
        # An earlier attempt may have had the same weights, but its locks are not this one's.
        wait_until(lambda: (read_record(self._weights(round)) or {}).get("attempt") == attempt)

    def _clear(self, round: int, weights_hash: str) -> None:
        """Removes what an earlier attempt left and this one cannot use."""
        self._verified = {k for k in self._verified if k < round}
        if self.opened_for(round) != weights_hash:
            for folder in self.path.glob("round_*"):
                if _number(folder) >= round:
                    shutil.rmtree(folder)
        elif not self.is_intact(round):
            self._manifest(round).unlink(missing_ok=True)
            if self.channel(round) is None:
                self._channel(round).unlink(missing_ok=True)
            self.discard_damaged(round)
        for left in self.folder(round).glob("*.tmp*"):
            left.unlink()

    def opened_for(self, round: int) -> str | None:
        """Returns the hash of the weights that a round was opened for, or None."""
        return (read_record(self._weights(round)) or {}).get("weights_sha256")

    def missing(self, round: int) -> list[int]:
        """Returns the chunks that no process has written yet."""
        return [c for c in self.chunks if not self._chunk(round, c).exists()]

    def write(self, round: int, chunk: int, x: Tensor) -> None:
        """Writes a chunk and its checksum, atomically.

        Arguments:
            round: The round k.
            chunk: The chunk's number.
            x: Reconstructions, (n, *shape), with the chunk's number of rows.

        Raises:
            ValueError: If the number of rows is not the chunk's.
            FloatingPointError: If a value is not finite.
            UserError: If the disk is full.
        """
        rows = self.rows(chunk)
        if len(x) != rows.stop - rows.start:
            raise ValueError(
                f"chunk {chunk} of round {round} has {rows.stop - rows.start} rows, got {len(x)}"
            )
        if not torch.isfinite(x).all():
            raise FloatingPointError(
                f"round {round}, chunk {chunk}: the reconstructions hold values that are not "
                "finite; lower m_step.optimizer.lr or raise sampler.steps, and start the run again"
            )
        path = self._chunk(round, chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        npy.write_array(buffer, x.float().cpu().numpy(), allow_pickle=False)
        data = buffer.getbuffer()
        # The checksum is of the bytes in memory and is written first: whatever the disk makes of
        # the chunk, a difference is seen.
        line = _checksum_line(hashlib.sha256(data).hexdigest(), path)
        write_file(_checksum_file(path), lambda file: file.write(line))
        write_file(path, lambda file: file.write(data), size=len(data))

    def write_channel(self, round: int, path: list[dict[str, float]]) -> None:
        """Writes the estimates of the channel's parameters that precede a round's E-step."""
        self.folder(round).mkdir(parents=True, exist_ok=True)
        write_record(self._channel(round), {"path": path})

    def channel(self, round: int) -> list[dict[str, float]] | None:
        """Returns what `write_channel` wrote; None if it is absent or damaged."""
        return (read_record(self._channel(round)) or {}).get("path")

    def commit(self, round: int, weights_hash: str) -> None:
        """Commits a round of which every chunk is written, by writing its manifest.

        Raises:
            ValueError: If a chunk is missing.
            UserError: If the channel's parameters are damaged.
        """
        if missing := self.missing(round):
            raise ValueError(f"round {round} cannot be committed: chunks {missing} are missing")
        if self._channel(round).exists() and self.channel(round) is None:
            raise UserError(f"{self._channel(round)} is damaged; start the same command again")
        paths = [self._chunk(round, c) for c in self.chunks]
        manifest = {
            "round": round,
            "size": self.size,
            "chunk_size": self.chunk_size,
            "weights_sha256": weights_hash,
            "config_sha256": self.config_hash,
            "channel": self.channel(round),
            "chunks": {path.name: expected_sha256(path) for path in paths},
        }
        write_record(self._manifest(round), manifest)

    def discard_damaged(self, round: int) -> list[int]:
        """Removes the chunks that differ from their checksums, and returns their numbers."""
        paths = {c: self._chunk(round, c) for c in self.chunks}
        damaged = [
            c
            for c, path in paths.items()
            if path.exists() and not matches(path, expected_sha256(path))
        ]
        for chunk in damaged:
            warn(f"{paths[chunk]} is damaged; it is drawn again")
            paths[chunk].unlink()
        return damaged

    def prune(self, keep: int) -> None:
        """Removes all committed rounds but the newest ones.

        Arguments:
            keep: How many to keep, >= 1.
        """
        manifests = self.path.glob("round_*/manifest.json")
        committed = sorted((path.parent for path in manifests), key=_number)
        for folder in committed[:-keep]:
            (folder / "manifest.json").unlink()  # first: a part of a round is never a round
            shutil.rmtree(folder)

    def committed(self, round: int) -> bool:
        """Returns whether a round has a manifest that can be read."""
        return read_record(self._manifest(round)) is not None

    def damaged(self, round: int) -> Path | None:
        """Returns the first file of a round that differs from what was committed, or None."""
        manifest = read_record(self._manifest(round))
        if manifest is None:
            return self._manifest(round)
        if manifest["channel"] != self.channel(round):
            return self._channel(round)
        paths = (self._chunk(round, c) for c in self.chunks)
        return next((p for p in paths if not matches(p, manifest["chunks"].get(p.name))), None)

    def is_intact(self, round: int) -> bool:
        """Returns whether a round is as it was committed; its bytes are read once a process."""
        if round not in self._verified and self.damaged(round) is None:
            self._verified.add(round)
        return round in self._verified

    def digest(self, round: int) -> str:
        """Returns a hash over a committed round's chunks."""
        chunks = (read_record(self._manifest(round)) or {})["chunks"]
        return hashlib.sha256(json.dumps(chunks, sort_keys=True).encode()).hexdigest()

    def open(self, round: int) -> Reconstructions:
        """Opens a committed round, read-only.

        Raises:
            UserError: If the round is not committed, or a file of it is damaged.
        """
        if not self._manifest(round).exists():
            folder = self.folder(round)
            raise UserError(f"{folder} is not a finished round; resume the run first")
        if not self.is_intact(round):
            raise UserError(
                f"{self.damaged(round)} is damaged; start the same command again: it resumes from "
                "before the round was drawn, and draws again what is damaged"
            )
        paths = [self._chunk(round, c) for c in self.chunks]
        return Reconstructions(
            [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths], round
        )

    def _chunk(self, round: int, chunk: int) -> Path:
        return self.folder(round) / f"chunk_{chunk:05d}.npy"

    def _manifest(self, round: int) -> Path:
        return self.folder(round) / "manifest.json"

    def _weights(self, round: int) -> Path:
        return self.folder(round) / "weights.json"

    def _channel(self, round: int) -> Path:
        return self.folder(round) / "channel.json"


class ChunkLocks:
    """The locks of one attempt at a round: a rank takes a chunk by creating a file with O_EXCL.

    Each attempt has a folder of its own, so that locks of processes that were killed hold nothing
    up.

    Arguments:
        round: The round's folder.
        attempt: The identifier that the processes of the attempt share.
    """

    def __init__(self, round: Path, attempt: str) -> None:
        self.folder = round / f"locks_{attempt}"

    def open(self) -> None:
        """Allows locks to be taken, and removes those of earlier attempts."""
        for folder in self.folder.parent.glob("locks_*"):
            shutil.rmtree(folder, ignore_errors=True)
        self.folder.mkdir()

    def take(self, chunk: int) -> bool:
        """Takes a chunk's lock; returns False if another rank has it, or the locks are closed."""
        try:
            os.close(os.open(self.folder / f"{chunk:05d}", os.O_CREAT | os.O_EXCL))
        except (FileExistsError, FileNotFoundError):
            return False
        return True

    def free(self, chunk: int) -> None:
        """Frees a chunk's lock, so that it can be taken again."""
        (self.folder / f"{chunk:05d}").unlink(missing_ok=True)

    def close(self) -> None:
        """Removes the locks; none can be taken from here on."""
        # One rename: while files were removed one by one, a rank could take a finished chunk.
        closed = self.folder.rename(self.folder.with_name(f"{self.folder.name}.closed"))
        shutil.rmtree(closed, ignore_errors=True)


def assign_chunks(
    store: ReconstructionStore, round: int, attempt: str, *, rank: tuple[int, int]
) -> Iterator[int]:
    """Yields the chunks that this process has to write, until the round is committed.

    Each rank begins with every W-th chunk and then takes any that is left, so that a slow rank
    writes fewer. The first rank commits the round; chunks that it finds damaged are assigned
    again.

    Arguments:
        store: The store.
        round: The round k, opened by `store.begin`.
        attempt: The identifier that `store.begin` was given.
        rank: This process's rank and the number W of processes.
    """
    own, world_size = rank
    locks = ChunkLocks(store.folder(round), attempt)
    if own == 0:
        locks.open()
    while not store.committed(round):
        for chunk in sorted(store.missing(round), key=lambda c: ((c - own) % world_size, c)):
            if locks.take(chunk):
                yield chunk
        if own != 0 or store.missing(round):
            time.sleep(POLL_SECONDS)
        elif damaged := store.discard_damaged(round):
            for chunk in damaged:
                locks.free(chunk)
        else:
            store.commit(round, store.opened_for(round) or "")
    if own == 0:
        locks.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Polls until a condition holds that another process brings about."""
    while not condition():
        time.sleep(POLL_SECONDS)


def expected_sha256(chunk: Path) -> str | None:
    """Returns the sha256 of the bytes that were written as a chunk.

    Arguments:
        chunk: The chunk's file.

    Returns:
        The digest in the file beside the chunk; None if that file is absent or damaged.
    """
    checksum = _checksum_file(chunk)
    line = checksum.read_bytes() if checksum.exists() else b""
    digest = line[:64].decode("ascii", errors="replace")
    return digest if line == _checksum_line(digest, chunk) else None


def _checksum_file(chunk: Path) -> Path:
    return chunk.with_suffix(".sha256")


def _checksum_line(digest: str, chunk: Path) -> bytes:
    return f"{digest}  {chunk.name}\n".encode()


def _number(folder: Path) -> int:
    """Returns the round of a folder."""
    return int(folder.name.removeprefix("round_"))
