"""Reconstruction store: the datasets D_k on disk, whole or absent.

    reconstructions/round_003/chunk_00017.npy …   fixed-size chunks, the last one shorter
    reconstructions/round_003/weights.json        the hash of the weights that make it
    reconstructions/round_003/manifest.json       the commit: checksums, weights' and config's hash
    reconstructions/round_003/channel.json        the channel's levels, where they are learned

A chunk is written under a temporary name in the same folder, synced and renamed; a round exists
once its manifest does. Any process may write any chunk, in any order.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from diffem.em.reconstructions import Reconstructions
from diffem.error import UserError
from diffem.file import sha256, write_file

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

    def begin(self, round: int, weights_hash: str, *, first: bool = True) -> None:
        """Opens a round for the chunks that some weights make.

        What other weights left in it, or in later rounds, is removed.

        Arguments:
            round: The round k.
            weights_hash: The hash of the weights.
            first: Whether this is the first process, which opens it; the others wait.
        """
        if first and self.begun(round) != weights_hash:
            for folder in self.path.glob("round_*"):
                if _number(folder) >= round:
                    shutil.rmtree(folder)
            self.folder(round).mkdir(parents=True)
            _write_json(self._weights(round), weights_hash)
        wait_until(lambda: self.begun(round) == weights_hash)

    def finish(self, round: int, *, first: bool = True) -> None:
        """Commits a round that was begun, once every process has written its chunks.

        Arguments:
            round: The round k.
            first: Whether this is the first process, which commits it; the others wait.
        """
        if first:
            wait_until(lambda: not self.missing(round))
            self.commit(round, self.begun(round) or "")
        wait_until(lambda: self.committed(round))

    def begun(self, round: int) -> str | None:
        """Returns the hash of the weights that a round is opened for, or None."""
        file = self._weights(round)
        return json.loads(file.read_text()) if file.exists() else None

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
        array = x.float().cpu().numpy()
        write_file(
            path, lambda file: npy.write_array(file, array, allow_pickle=False), size=array.nbytes
        )

    def write_channel(self, round: int, path: list[dict[str, float]]) -> None:
        """Writes how the channel's levels were learned before a round's E-step."""
        self.folder(round).mkdir(parents=True, exist_ok=True)
        _write_json(self._channel(round), path)

    def channel(self, round: int) -> list[dict[str, float]] | None:
        """Returns what `write_channel` wrote, or None before it did."""
        file = self._channel(round)
        return json.loads(file.read_text()) if file.exists() else None

    def commit(self, round: int, weights_hash: str) -> None:
        """Makes a round of which every chunk is written, by writing its manifest.

        Raises:
            ValueError: If a chunk is missing.
        """
        if missing := self.missing(round):
            raise ValueError(f"round {round} cannot be committed: chunks {missing} are missing")
        checksums = {
            path.name: sha256(path) for path in (self._chunk(round, c) for c in self.chunks)
        }
        manifest = {
            "round": round,
            "size": self.size,
            "chunk_size": self.chunk_size,
            "weights_sha256": weights_hash,
            "config_sha256": self.config_hash,
            "chunks": checksums,
        }
        _write_json(self._manifest(round), manifest)

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
        """Returns whether a round is whole."""
        return self._manifest(round).exists()

    def digest(self, round: int) -> str:
        """Returns a hash over a committed round's chunks."""
        chunks = json.loads(self._manifest(round).read_text())["chunks"]
        return hashlib.sha256(json.dumps(chunks, sort_keys=True).encode()).hexdigest()

    def open(self, round: int) -> Reconstructions:
        """Opens a committed round, read-only.

        Raises:
            UserError: If the round is not committed.
        """
        if not self.committed(round):
            folder = self.folder(round)
            raise UserError(f"{folder} is not a finished round; run train.py to its end")
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


def _write_json(path: Path, value: object) -> None:
    """Writes a JSON file, whole or not at all."""
    write_file(path, lambda file: file.write(json.dumps(value, indent=1).encode()))
