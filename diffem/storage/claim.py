"""Chunk locks: ranks claim E-step chunks by creating a lock file with O_EXCL.

A process that is busy takes no claim, so that a slow one makes fewer chunks. An attempt at a round
has a folder of claims of its own: those of processes that were killed are in another.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from diffem.storage.store import POLL_SECONDS, ReconstructionStore


def share(
    store: ReconstructionStore, round: int, attempt: str, *, rank: tuple[int, int]
) -> Iterator[int]:
    """Yields the chunks that this process is to write, until the round is committed.

    Each process begins with its share and goes on with what no other has claimed. The first one
    commits the round; a chunk that it finds damaged is claimed and made again.

    Arguments:
        store: The store.
        round: The round k, which was begun.
        attempt: What it was begun with.
        rank: This process's rank and the number of processes.
    """
    own, world_size = rank
    claims = ChunkLocks(store.folder(round), attempt)
    if own == 0:
        claims.open()
    while not store.committed(round):
        for chunk in sorted(store.missing(round), key=lambda c: ((c - own) % world_size, c)):
            if claims.take(chunk):
                yield chunk
        if own != 0 or store.missing(round):
            time.sleep(POLL_SECONDS)
        elif damaged := store.discard_damaged(round):
            for chunk in damaged:
                claims.free(chunk)
        else:
            store.commit(round, store.begun(round) or "")
    if own == 0:
        claims.close()


class ChunkLocks:
    """The claims of one attempt at a round.

    Arguments:
        round: The round's folder.
        attempt: What the processes of the attempt share, and no others.
    """

    def __init__(self, round: Path, attempt: str) -> None:
        self.folder = round / f"claims_{attempt}"

    def open(self) -> None:
        """Lets claims be taken, and removes those of earlier attempts."""
        for folder in self.folder.parent.glob("claims_*"):
            shutil.rmtree(folder, ignore_errors=True)
        self.folder.mkdir()

    def take(self, chunk: int) -> bool:
        """Returns whether this process is to make a chunk; none is while the claims are closed."""
        try:
            os.close(os.open(self.folder / f"{chunk:05d}", os.O_CREAT | os.O_EXCL))
        except (FileExistsError, FileNotFoundError):
            return False
        return True

    def free(self, chunk: int) -> None:
        """Lets a chunk be claimed again."""
        (self.folder / f"{chunk:05d}").unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the claims."""
        # At one stroke: while files were removed one by one, a process could take what is done.
        over = self.folder.rename(self.folder.with_name(f"{self.folder.name}.over"))
        shutil.rmtree(over, ignore_errors=True)
