"""Surveys: measurements are read once at the start, to check them and to learn their range."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diffem.data.arrays import numbers
from diffem.data.held import Held
from diffem.data.npy import Rows
from diffem.data.scale import Scale
from diffem.data.stack import FileStack
from diffem.runtime.errors import UserError
from diffem.runtime.progress import progress_bar

OUTSIDE = 1e-3  # of the measured values: an estimated range leaves out as many, at both ends
SUBSAMPLE = 2**21  # values that the quantiles are estimated from: 1,000 beyond either of them
CHUNK = 2**20  # values that are read at once
LONG_FILES = 2**13  # images in files, of which reading takes seconds
LONG_BYTES = 2**28  # of an array, which take as long


@dataclass(frozen=True)
class Survey:
    """What was found in the measurements that are used."""

    values: np.ndarray
    """Measured values, or as many of them as tell the quantiles; in their own dtype."""
    missing: int | None
    """The first row that holds NaN; None if none does."""

    def outside(self, low: float, high: float) -> float:
        """Returns the fraction of the measured values that are outside a range."""
        return float(((self.values < low) | (self.values > high)).mean())

    def scale(self) -> Scale:
        """Returns the range of the values, without the outermost 0.1 %."""
        low, high = (float(q) for q in np.quantile(self.values, (OUTSIDE / 2, 1 - OUTSIDE / 2)))
        return Scale(low, high) if low < high else Scale(low - 1, low + 1)


def take_survey(held: Held, count: int) -> Survey:
    """Reads the measurements once, in chunks, and returns what was found.

    Arguments:
        held: The file or folder.
        count: How many of its measurements are used, the first ones.

    Raises:
        UserError: If one cannot be read, or holds infinity, or a parameter is no real number.
    """
    sample, rng = [], np.random.default_rng(0)  # the same values each time
    missing, measured = None, 0
    total = count * math.prod(held.y.shape[1:])
    chunks = list(row_chunks(held.y, count))
    long = _is_long(held, count)
    with progress_bar("measurements  check", len(chunks), "chunks", shown=long) as advance:
        for rows in chunks:
            values = held.y[rows].reshape(len(rows), -1)
            nan = np.isnan(values).any(axis=1)
            if (bad := ~_storable(values).all(axis=1)).any():
                raise UserError(
                    f"{held.label(int(rows[bad.argmax()]))} holds infinity, or a number that is "
                    "too large; mark it by NaN"
                )
            if missing is None and nan.any():
                missing = int(rows[nan.argmax()])
            values = values[~np.isnan(values)] if nan.any() else values.ravel()
            measured += len(values)
            if total > SUBSAMPLE and len(values):
                share = math.ceil(SUBSAMPLE * values.size / total)
                values = values[rng.integers(len(values), size=share)]
            sample.append(values)
            advance()
    if not measured:
        raise UserError(f"{held.name} holds no measured value, only NaN; give other measurements")
    for name, array in (("operator", held.operator), ("std", held.std)):
        if array is None:
            continue
        for rows in row_chunks(array, count):
            # NaN may say what was not measured; whether it does is checked with the channel.
            nan = name == "operator" or len(array.shape) > 2
            values = numbers(array[rows], f"{held.name}: {name}", nan=nan)
            if name == "std" and values.ndim == 1 and not (values > 0).all():
                raise UserError(f"{held.name}: std must be positive numbers, (N,); correct it")
    return Survey(np.concatenate(sample), missing)


def _storable(values: np.ndarray) -> np.ndarray:
    """Returns where values are NaN, or fit into float32."""
    if values.dtype.kind != "f":
        return np.ones(values.shape, bool)
    return np.isnan(values) | (np.abs(values) <= np.finfo(np.float32).max)


def rows_at_once(array: Rows) -> int:
    """Returns how many rows of an array are read together."""
    return max(1, CHUNK // max(1, math.prod(array.shape[1:])))


def row_chunks(array: Rows, count: int) -> Iterator[np.ndarray]:
    """Yields the numbers of the first rows of an array, in chunks that are read at once."""
    step = rows_at_once(array)
    for start in range(0, count, step):
        yield np.arange(start, min(count, start + step))


def _is_long(held: Held, count: int) -> bool:
    """Returns whether reading the first measurements takes seconds."""
    if isinstance(held.y, FileStack):
        return count >= LONG_FILES
    return count * math.prod(held.y.shape[1:]) * held.y.dtype.itemsize >= LONG_BYTES
