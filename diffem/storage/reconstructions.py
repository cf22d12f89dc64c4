"""The reconstructions D_k on disk, and their batches. A round is complete or absent.

    reconstructions/round_003/chunk_00017.npy      float32; fixed-size chunks, the last one shorter
    reconstructions/round_003/chunk_00017.sha256   the chunk's sha256, for `sha256sum --check`, and
                                                   a comment that names the round and the run
    reconstructions/round_003/locks_6f…/           one file for each chunk that a rank has taken;
                                                   removed at the commit
    reconstructions/round_003/weights.json         the hash of the weights that draw the round, or
                                                   were due to where the one before is kept
    reconstructions/round_003/channel.json         the channel's parameters, where they are learned
    reconstructions/round_003/manifest.json        the commit: checksums, hashes of the weights, of
                                                   the configuration, of the measurements and of
                                                   the round before

Every file is written under a temporary name in the same folder, synced and renamed. A round exists
once its manifest does. Any process may write any chunk, in any order. A chunk that is damaged
before the commit is drawn again; damage after the commit is found when the round is opened.
"""

import hashlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor
from torch.utils.data import Dataset

from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.storage.atomic import matches, read_record, write_file, write_record
from diffem.storage.identity import RunIdentity
from diffem.storage.run_dir import is_round

POLL_SECONDS = 0.05
IN_MEMORY = 2**28  # bytes of a round that is kept in memory while it is trained on
MOST_BUFFERS = 1024  # that the kernel fills in one call (IOV_MAX)
MOST_BYTES = 2**30  # that it reads in one call: less than 2 GiB
UNUSED = memoryview(bytearray(2**14))  # takes what is read between two rows and not used
LINKED = {"previous_sha256", "channel", "chunks"}  # keys of a manifest that damage is found by
AGAIN = (
    "start the same command again: it resumes from before the round was drawn, and draws again "
    "what is damaged"
)


class Batch(NamedTuple):
    """A training batch of reconstructions."""

    x: Tensor
    """Reconstructions, (B, *shape), float32."""
    round: int
    """The round k that they come from."""
    rows: Tensor
    """Their rows in D_k, (B,)."""
    remembered: Tensor | None = None
    """Which of them took the place of a row of D_k and have no measurement, (B,) bool, on the
    device of x; None for none."""
    weight: Tensor | None = None
    """The weight of each one's loss, (B,), on the device of x; None for 1."""

    def factor(self) -> Tensor | float:
        """Returns the weight of each one's loss, as it broadcasts against x."""
        if self.weight is None:
            return 1.0
        return self.weight.view(-1, *(1,) * (self.x.ndim - 1))


class Reconstructions(Dataset[Batch]):
    """One committed round; batches are read as a block.

    A round of at most `IN_MEMORY` bytes is read whole, at the first batch. Of a larger one rows
    are read, not memory-mapped: a map keeps its file open, and a round may have more chunks than a
    process may have open files. A file is open for one call alone.

    Arguments:
        paths: The files of the round's chunks, in order.
        round: The round k.
        size: The number N of reconstructions; all chunks but the last have the same number.

    Raises:
        UserError: If the first chunk is no array of float32 numbers.
    """

    def __init__(self, paths: Sequence[Path], round: int, *, size: int) -> None:
        self.paths = paths
        self.round = round
        self.size = size
        # numpy leaves room for a longer number of rows: the headers of all chunks are as long.
        self.header_bytes, (self.chunk_size, *shape) = _read_header(paths[0])
        self.shape = tuple(shape)
        self.row_bytes = 4 * math.prod(self.shape)
        self.whole: np.ndarray | None = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns the batch of the reconstructions at the indices, in their order.

        Raises:
            UserError: If a chunk is gone, or shorter than it was.
        """
        index = np.asarray(indices, dtype=np.int64)
        if self.whole is None and self.size * self.row_bytes <= IN_MEMORY:
            self.whole = self._rows(np.arange(self.size))
        x = self._rows(index) if self.whole is None else self.whole[index]
        return Batch(torch.from_numpy(x), self.round, torch.from_numpy(index))

    def _rows(self, index: np.ndarray) -> np.ndarray:
        """Reads rows, (B, *shape), of any chunks, in their order."""
        x = np.empty((len(index), *self.shape), dtype=np.float32)
        order = np.argsort(index, kind="stable")
        rows, places = index[order], [row.data for row in x[:, None]]
        parts: dict[int, tuple[list[int], list[memoryview]]] = {}
        for place, row in zip(order.tolist(), rows.tolist(), strict=True):
            wanted, buffers = parts.setdefault(row // self.chunk_size, ([], []))
            wanted.append(row % self.chunk_size)
            buffers.append(places[place])
        for chunk, (wanted, buffers) in parts.items():
            self._read(chunk, wanted, buffers)
        return x

    def _read(self, chunk: int, rows: list[int], places: list[memoryview]) -> None:
        """Reads rows of one chunk, in ascending order, each into its place."""
        path = self.paths[chunk]
        count = min(self.size - chunk * self.chunk_size, self.chunk_size)
        try:
            file = os.open(path, os.O_RDONLY)
            try:
                if os.fstat(file).st_size != self.header_bytes + count * self.row_bytes:
                    raise UserError(f"{path} has another size than it was written with; {AGAIN}")
                for start, stop, buffers in self._calls(rows, places):
                    offset = self.header_bytes + start * self.row_bytes
                    if os.preadv(file, buffers, offset) != (stop - start) * self.row_bytes:
                        raise UserError(f"{path} is shorter than it was; {AGAIN}")
            finally:
                os.close(file)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); {AGAIN}") from error

    def _calls(
        self, rows: list[int], places: list[memoryview]
    ) -> Iterator[tuple[int, int, list[memoryview]]]:
        """Yields the rows of each call of the kernel, from start to stop, and their buffers.

        What lies between rows that are close to each other is read too, and not used: that costs
        less than another call.
        """
        start, stop, buffers = rows[0], rows[0], list[memoryview]()
        for row, place in zip(rows, places, strict=True):
            gap = row - stop
            full = len(buffers) + 2 > MOST_BUFFERS or (row - start) * self.row_bytes > MOST_BYTES
            if full or not 0 <= gap * self.row_bytes <= len(UNUSED):
                yield start, stop, buffers
                start, gap, buffers = row, 0, []
            if gap:
                buffers.append(UNUSED[: gap * self.row_bytes])
            buffers.append(place)
            stop = row + 1
        yield start, stop, buffers


def _read_header(path: Path) -> tuple[int, tuple[int, ...]]:
    """Returns the length of a chunk's header in bytes, and the shape that it announces.

    Raises:
        UserError: If the file is no chunk.
    """
    try:
        with path.open("rb") as file:
            npy.read_magic(file)
            shape, fortran, dtype = npy.read_array_header_1_0(file)
            length = file.tell()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {AGAIN}") from error
    if dtype != np.float32 or not shape or (fortran and len(shape) > 1):
        raise UserError(f"{path} is no chunk of reconstructions; {AGAIN}")
    return length, shape


class ReconstructionStore:
    """The rounds of one run.

    Arguments:
        path: The folder that holds a folder for each round.
        size: The number N of reconstructions in a round.
        chunk_size: The number of reconstructions in a chunk.
        identity: What the rounds are bound to; None for a store that is only read, of whichever
            run.
    """

    def __init__(
        self, path: Path, *, size: int, chunk_size: int, identity: RunIdentity | None = None
    ) -> None:
        self.path = path
        self.size = size
        self.chunk_size = chunk_size
        self.identity = identity
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
            write_record(self._weights(round), {**opened, **self._bound()})
        # An earlier attempt may have had the same weights, but its locks are not this one's.
        wait_until(lambda: (read_record(self._weights(round)) or {}).get("attempt") == attempt)

    def _clear(self, round: int, weights_hash: str) -> None:
        """Removes what an earlier attempt left and this one cannot use."""
        self._verified = {k for k in self._verified if k < round}
        if self.opened_for(round) != weights_hash:
            for folder in self._folders():
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
                "finite; start again in a new run_dir with a lower m_step.optimizer.lr or more "
                "sampler.steps"
            )
        self.folder(round).mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        rows_first = np.ascontiguousarray(x.float().cpu().numpy())
        npy.write_array(buffer, rows_first, allow_pickle=False)
        self._write_chunk(round, chunk, buffer.getbuffer())

    def _write_chunk(self, round: int, chunk: int, data: memoryview) -> None:
        # The checksum is of the bytes in memory and is written first: whatever the disk makes of
        # the chunk, a difference is seen.
        path = self._chunk(round, chunk)
        lines = self._checksum_lines(hashlib.sha256(data).hexdigest(), round, path)
        write_file(_checksum_file(path), lambda file: file.write(lines))
        write_file(path, lambda file: file.write(data), size=len(data))

    def carry_over(self, round: int, chunk: int) -> None:
        """Copies a chunk from the round before.

        Raises:
            UserError: If the chunk of the round before is missing or damaged, or the disk is full.
        """
        source = self._chunk(round - 1, chunk)
        digest = self.expected_sha256(round - 1, source)
        data = source.read_bytes() if source.exists() else b""
        if digest != hashlib.sha256(data).hexdigest():
            raise UserError(f"{source} is damaged; {AGAIN}")
        self._write_chunk(round, chunk, memoryview(data))

    def write_channel(self, round: int, path: list[dict[str, float]]) -> None:
        """Writes the estimates of the channel's parameters that precede a round's E-step."""
        self.folder(round).mkdir(parents=True, exist_ok=True)
        record = {"path": path, "weights_sha256": self.opened_for(round), **self._bound()}
        write_record(self._channel(round), record)

    def channel(self, round: int) -> list[dict[str, float]] | None:
        """Returns what `write_channel` wrote; None if it is absent, damaged or of another run."""
        record = read_record(self._channel(round)) or {}
        drawn = read_record(self._weights(round)) or read_record(self._manifest(round)) or {}
        own = self._is_own(record) and record.get("weights_sha256") == drawn.get("weights_sha256")
        return record.get("path") if own else None

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
            **self._bound(),
            "previous_sha256": self.digest(round - 1),
            "channel": self.channel(round),
            "chunks": {path.name: self.expected_sha256(round, path) for path in paths},
        }
        write_record(self._manifest(round), manifest)

    def discard_damaged(self, round: int) -> list[int]:
        """Removes the chunks that differ from their checksums, and returns their numbers."""
        paths = {c: self._chunk(round, c) for c in self.chunks}
        damaged = [
            c
            for c, path in paths.items()
            if path.exists() and not matches(path, self.expected_sha256(round, path))
        ]
        for chunk in damaged:
            warn(f"{paths[chunk]} is damaged; it is drawn again")
            paths[chunk].unlink()
        return damaged

    def expected_sha256(self, round: int, chunk: Path) -> str | None:
        """Returns the sha256 of the bytes that were written as a chunk.

        Arguments:
            round: The round k.
            chunk: The chunk's file.

        Returns:
            The digest in the file beside the chunk; None if that file is absent, damaged, or of
            another round or run.
        """
        checksum = _checksum_file(chunk)
        lines = checksum.read_bytes() if checksum.exists() else b""
        digest = lines[:64].decode("ascii", errors="replace")
        return digest if lines == self._checksum_lines(digest, round, chunk) else None

    def _checksum_lines(self, digest: str, round: int, chunk: Path) -> bytes:
        run = "" if self.identity is None else f" of run {self.identity.short()}"
        return f"{digest}  {chunk.name}\n# round {round}{run}\n".encode()

    def prune(self, keep: int, *, newest: int) -> None:
        """Removes old rounds, and what a kill has left of rounds that were being removed.

        Arguments:
            keep: How many to keep, >= 1.
            newest: The newest round that is kept; later ones are not touched.
        """
        for folder in self._folders():
            if _number(folder) <= newest - keep:
                # First: a part of a round is never a round.
                (folder / "manifest.json").unlink(missing_ok=True)
                shutil.rmtree(folder)

    def _folders(self) -> list[Path]:
        """Returns the folders of rounds; a user may have put others beside them."""
        return sorted(filter(is_round, self.path.glob("round_*")))

    def committed(self, round: int) -> bool:
        """Returns whether a round has a manifest that can be read."""
        return read_record(self._manifest(round)) is not None

    def damaged(self, round: int) -> Path | None:
        """Returns the first file of a round that differs from what was committed, or None."""
        manifest = read_record(self._manifest(round))
        # One without all keys is of an earlier state of diffem 0.2.
        if not manifest or not LINKED <= manifest.keys() or not self._is_own(manifest):
            return self._manifest(round)
        before = self.digest(round - 1)
        if before is not None and manifest["previous_sha256"] != before:
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

    def digest(self, round: int) -> str | None:
        """Returns a hash over a round's chunks; None if it is not committed."""
        manifest = read_record(self._manifest(round)) or {}
        if (chunks := manifest.get("chunks")) is None:
            return None
        return hashlib.sha256(json.dumps(chunks, sort_keys=True).encode()).hexdigest()

    def intact_digest(self, round: int) -> str | None:
        """Returns the hash over a round's chunks; None if the round is missing or damaged."""
        return self.digest(round) if self.is_intact(round) else None

    def binding(self, round: int) -> dict[str, str | None]:
        """Returns what a checkpoint holds of the run, and of the round that it was trained on."""
        return {**self._bound(), "round_sha256": self.digest(round)}

    def check_own(self) -> None:
        """Refuses a store that holds a round of another run.

        Raises:
            UserError: If it does; it names the file.
        """
        for folder in self._folders():
            for name in ("manifest.json", "weights.json", "channel.json"):
                record = read_record(folder / name)
                if record is not None and not self._is_own(record):
                    raise UserError(
                        f"{folder / name} is of another run, with other settings or measurements; "
                        f"put this run's own {folder.name} back, or remove that folder: the run "
                        "then draws it again if it can"
                    )

    def _bound(self) -> dict[str, str]:
        """Returns what a record says of the run that it is of."""
        return {} if self.identity is None else self.identity._asdict()

    def _is_own(self, record: Mapping[str, Any]) -> bool:
        """Returns whether a record is of this run."""
        return all(record.get(key) == value for key, value in self._bound().items())

    def open(self, round: int) -> Reconstructions:
        """Opens a committed round, read-only.

        Raises:
            UserError: If the round is not committed, or a file of it is damaged.
        """
        if not self._manifest(round).exists():
            folder = self.folder(round)
            raise UserError(f"{folder} is not a finished round; resume the run first")
        if not self.is_intact(round):
            raise UserError(f"{self.damaged(round)} is damaged; {AGAIN}")
        paths = [self._chunk(round, c) for c in self.chunks]
        return Reconstructions(paths, round, size=self.size)

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


def _checksum_file(chunk: Path) -> Path:
    return chunk.with_suffix(".sha256")


def _number(folder: Path) -> int:
    """Returns the round of a folder."""
    return int(folder.name.removeprefix("round_"))
