"""Random reads of reconstructions against those of one memory map."""

from pathlib import Path

import numpy as np
import torch

from bench.figure import Figure, alternate, seconds
from diffem.storage.reconstructions import IN_MEMORY, ReconstructionStore

SHAPE, CHUNK, BATCH = (3, 32, 32), 500, 256
LIMIT = 0.77
"""500,000 images a second where a memory map had 650,000."""


def store_reads(folder: Path, *, size: int, batches: int = 64, times: int = 7) -> Figure:
    """Returns the images a second of the store over those of numpy's memory map, same batches.

    Arguments:
        folder: An empty folder.
        size: The number of images, of which batches are read at random.
        batches: The number of batches of 256 of a measurement.
        times: The number of alternations.
    """
    store = ReconstructionStore(folder / "rounds", size=size, chunk_size=CHUNK)
    chunk = torch.rand(CHUNK, *SHAPE, generator=torch.Generator().manual_seed(0))
    store.begin(0, "")
    whole = np.lib.format.open_memmap(
        folder / "whole.npy", mode="w+", dtype=np.float32, shape=(size, *SHAPE)
    )
    for c in store.chunks:
        rows = store.rows(c)
        store.write(0, c, chunk[: rows.stop - rows.start])
        whole[rows] = chunk[: rows.stop - rows.start]
    whole.flush()
    store.commit(0, "")
    reads, mapped = store.open(0), np.load(folder / "whole.npy", mmap_mode="r")
    rng = np.random.default_rng(0)
    indices = [rng.integers(0, size, BATCH) for _ in range(batches)]

    def from_store() -> float:
        return batches * BATCH / seconds(lambda: [reads.__getitems__(i.tolist()) for i in indices])

    def from_map() -> float:
        return batches * BATCH / seconds(lambda: [torch.from_numpy(mapped[i]) for i in indices])

    for warm_up in (from_store, from_map):
        warm_up()
    kept = size * 4 * int(np.prod(SHAPE)) <= IN_MEMORY
    name = "store_reads_in_memory" if kept else "store_reads_from_disk"
    title = f"store over memory map, {size:,} images of 32 × 32 × 3 read at random" + (
        " (kept in memory)" if kept else " (too large to be kept in memory)"
    )
    pairs = alternate(from_store, from_map, times)
    return Figure(name, title, pairs, unit="images/s", limit=LIMIT, more_is_better=True)
