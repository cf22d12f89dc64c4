"""The reconstructions of a round, served in batches."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Batch(NamedTuple):
    """A training batch of reconstructions."""

    x: Tensor
    """Reconstructions, (B, *shape), float32."""
    round: int
    """The round k that they come from."""
    rows: Tensor
    """Their rows in D_k, (B,)."""


class Reconstructions(Dataset[Batch]):
    """One committed round, memory-mapped; batches are fetched whole.

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
