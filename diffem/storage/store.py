"""Reconstruction store: the datasets D_k on disk, whole or absent.

    reconstructions/round_003/chunk_00017.npy …   fixed-size chunks, the last one shorter
    reconstructions/round_003/chunk_00017.sha256  what the chunk is meant to be
    reconstructions/round_003/claims_6f…/         who makes which chunk, until the commit
    reconstructions/round_003/weights.json        the hash of the weights that make it
    reconstructions/round_003/manifest.json       the commit: checksums, weights' and config's hash
    reconstructions/round_003/channel.json        the channel's levels, where they are learned

A chunk is written under a temporary name in the same folder, synced and renamed; a round exists
once its manifest does. Any process may write any chunk, in any order. A chunk that is damaged
before the commit is made again; one that is damaged after it is met when the round is opened.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn
from diffem.storage import chunk as files
from diffem.storage.atomic import matches, read_record, write_record
from diffem.storage.reconstructions import Reconstructions

POLL_SECONDS = 0.05


class ReconstructionStore:
    """The rounds of one run.

    Arguments:
        path: The folder that holds a folder for each round.
        size: The number N of reconstructions in a round.
        chunk_size: The number of reconstructions in a chunk.
        config_hash: A hash of the run's configuration, kept in every manifest.
    """

    def __init__(self, path: Path, *, size: int, chunk_size: int, config_hash: str) -> None:
        self.path = path
        self.size = size
        self.chunk_size = chunk_size
        self.config_hash = config_hash
        self._verified: set[int] = set()  # rounds that this process has read through

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
        """Opens a round for the chunks that some weights make.

        What other weights left in it, or in later rounds, is removed, and what is damaged.

        Arguments:
            round: The round k.
            weights_hash: The hash of the weights.
            attempt: What the processes of this E-step share, and no others.
            first: Whether this is the first process, which opens it; the others wait.
        """
        if first:
            self._clear(round, weights_hash)
            self.folder(round).mkdir(parents=True, exist_ok=True)
            opened = {"weights_sha256": weights_hash, "attempt": attempt}
            write_record(self._weights(round), opened)
        # What an earlier attempt was opened for is the same, but its claims are not.
        wait_until(lambda: (read_record(self._weights(round)) or {}).get("attempt") == attempt)

    def _clear(self, round: int, weights_hash: str) -> None:
        """Removes from a round what an attempt cannot keep of an earlier one."""
        self._verified = {k for k in self._verified if k < round}
        if self.begun(round) != weights_hash:
            for folder in self.path.glob("round_*"):
                if _number(folder) >= round:
                    shutil.rmtree(folder)
        elif not self.whole(round):
            self._manifest(round).unlink(missing_ok=True)
            if self.channel(round) is None:
                self._channel(round).unlink(missing_ok=True)
            self.discard_damaged(round)
        for left in self.folder(round).glob("*.tmp*"):
            left.unlink()

    def begun(self, round: int) -> str | None:
        """Returns the hash of the weights that a round is opened for, or None."""
        return (read_record(self._weights(round)) or {}).get("weights_sha256")

    def missing(self, round: int) -> list[int]:
        """Returns the chunks that no process has written yet."""
        return [c for c in self.chunks if not self._chunk(round, c).exists()]

    def write(self, round: int, chunk: int, x: Tensor) -> None:
        """Writes a chunk, whole or not at all.

        Raises:
            ValueError: If the number of rows is not the chunk's.
            FloatingPointError: If a value is not finite.
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
        files.write_chunk(path, x)

    def write_channel(self, round: int, path: list[dict[str, float]]) -> None:
        """Writes how the channel's levels were learned before a round's E-step."""
        self.folder(round).mkdir(parents=True, exist_ok=True)
        write_record(self._channel(round), {"path": path})

    def channel(self, round: int) -> list[dict[str, float]] | None:
        """Returns what `write_channel` wrote, or None before it did, or if it is damaged."""
        return (read_record(self._channel(round)) or {}).get("path")

    def commit(self, round: int, weights_hash: str) -> None:
        """Makes a round of which every chunk is written, by writing its manifest.

        Raises:
            ValueError: If a chunk is missing.
            UserError: If the channel's levels are damaged.
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
            "chunks": {path.name: files.meant(path) for path in paths},
        }
        write_record(self._manifest(round), manifest)

    def discard_damaged(self, round: int) -> list[int]:
        """Removes, and returns, the chunks that are not what was meant."""
        damaged = [c for c in self.chunks if files.damaged(self._chunk(round, c))]
        for chunk in damaged:
            warn(f"{self._chunk(round, chunk)} is damaged; it is made again")
            self._chunk(round, chunk).unlink()
        return damaged

    def prune(self, keep: int) -> None:
        """Removes all committed rounds but the newest ones.

        Arguments:
            keep: How many to keep, >= 1.
        """
        manifests = self.path.glob("round_*/manifest.json")
        committed = sorted((path.parent for path in manifests), key=_number)
        for folder in committed[:-keep]:
            (folder / "manifest.json").unlink()  # no longer a round, whatever happens next
            shutil.rmtree(folder)

    def committed(self, round: int) -> bool:
        """Returns whether a round's manifest is there, and is not damaged."""
        return read_record(self._manifest(round)) is not None

    def damaged(self, round: int) -> Path | None:
        """Returns a file of a round that is not what was committed, None if there is none."""
        manifest = read_record(self._manifest(round))
        if manifest is None:
            return self._manifest(round)
        if manifest["channel"] != self.channel(round):
            return self._channel(round)
        paths = (self._chunk(round, c) for c in self.chunks)
        return next((p for p in paths if not matches(p, manifest["chunks"].get(p.name))), None)

    def whole(self, round: int) -> bool:
        """Returns whether a round is what was committed; a process reads it through once."""
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
            raise UserError(f"{folder} is not a finished round; run train.py to its end")
        if not self.whole(round):
            raise UserError(
                f"{self.damaged(round)} is damaged; start the same command again: it goes on from "
                "before the round was made, and makes again what is damaged"
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


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns when a condition holds, which another process may bring about."""
    while not condition():
        time.sleep(POLL_SECONDS)


def _number(folder: Path) -> int:
    """Returns the round of a folder."""
    return int(folder.name.removeprefix("round_"))
