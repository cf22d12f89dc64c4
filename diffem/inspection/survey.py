"""Survey of a file or folder of measurements: what is in it, in the data's own units."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diffem.corruption import Channel, Denoising, LinearChannel, Mask, Weighting
from diffem.data.arrays import measured_entries, own_operator
from diffem.data.held import Held
from diffem.data.survey import row_chunks
from diffem.runtime.progress import progress_bar

READ = 2**22  # values of the sample that are read at once
SAMPLE = 2**21  # values that noise and histogram are taken from
LONG = 2**26  # values of which reading takes seconds
PILED = 5.0  # times as many values as at the levels beside it
FEW = 5e-4  # of the values: fewer at a limit are no clipping
REPEATS = 2  # times, at least, that the value of a dead pixel is the same as the one before
CHANCE = 0.05  # pixels of one value that may be expected by chance where others are called dead
DEAD = 0.5  # of the pixels: of more, the measurements are no detector's
LEVELS = 8  # of neighbouring values that the number at a limit is compared with


@dataclass(frozen=True)
class Limit:
    """A value at which measurements pile up: the detector clips there."""

    value: float
    fraction: float
    """Of the measured values."""


@dataclass(frozen=True)
class DataSurvey:
    """What a file or a folder of measurements holds."""

    name: str
    """The path."""
    count: int
    """The number of measurements."""
    shape: tuple[int, ...]
    """The shape of one, as it is in the file."""
    dtype: str
    low: float
    """The smallest value."""
    high: float
    """The largest value."""
    missing: float
    """The fraction of values that are NaN, or that a mask in `operator` leaves out."""
    constant: int
    """The number of measurements whose measured values are all the same."""
    empty: int
    """The number of measurements without a measured value."""
    clipped_low: Limit | None
    """Where values pile up at the smallest one."""
    clipped_high: Limit | None
    """Where values pile up at the largest one."""
    dead: np.ndarray
    """The places of the pixels that have one value in all measurements, which is not by chance:
    (k, axes of M)."""
    sample: np.ndarray
    """Some of the measurements, neighbours in pairs, (n, *M), in their dtype; of large images a
    part of each. Where pixels are dead they are NaN."""

    @property
    def limits(self) -> tuple[float, ...]:
        """The values that the detector clips to."""
        return tuple(p.value for p in (self.clipped_low, self.clipped_high) if p is not None)


def survey_data(held: Held, channel: Channel, *, limit: int | None = None) -> DataSurvey:
    """Reads all measurements once, in chunks.

    Arguments:
        held: The file or folder.
        channel: The channel that they went through, which says what is not measured; noise alone
            where it is not known.
        limit: The largest number of measurements to use, the first ones; None for all.

    Raises:
        UserError: If one cannot be read.
    """
    count = len(held.y) if limit is None else min(limit, len(held.y))
    shape = tuple(held.y.shape[1:])
    low, high, at_low, at_high = math.inf, -math.inf, 0, 0
    missing = constant = empty = 0
    pixels = _Pixels(math.prod(shape))
    for values in _rows(held, channel, count):
        finite = np.isfinite(values)
        missing += int(np.isnan(values).sum())
        empty += int((~finite.any(axis=1)).sum())
        if not finite.any():
            continue
        above, below = np.where(finite, values, np.inf), np.where(finite, values, -np.inf)
        pixels.add(values, above, below)
        smallest, largest = above.min(axis=1), below.max(axis=1)
        constant += int((smallest == largest).sum())
        least, most = float(smallest.min()), float(largest.max())
        at_low, low = (0, least) if least < low else (at_low, low)
        at_high, high = (0, most) if most > high else (at_high, high)
        at_low += int((values == low).sum())
        at_high += int((values == high).sum())
    dead = pixels.dead()
    at_low -= int(pixels.seen[dead & (pixels.low == low)].sum())
    at_high -= int(pixels.seen[dead & (pixels.low == high)].sum())
    sample = _sample(held, channel, count, dead.reshape(shape))
    total = count * math.prod(shape)
    measured = max(1, total - missing)
    found = np.unique(sample[np.isfinite(sample)])
    clipped_low = _limit(low, at_low / measured, sample, found[found > low][:LEVELS])
    clipped_high = _limit(high, at_high / measured, sample, found[found < high][-LEVELS:])
    for clipped in (clipped_low, clipped_high):
        if clipped is not None:  # a pixel may be so in all measurements, as in the dark
            dead &= pixels.low != clipped.value
    return DataSurvey(
        held.name.partition(": ")[2] or held.name,
        count,
        shape,
        held.y.dtype.name,
        low,
        high,
        missing / max(1, total),
        constant,
        empty,
        clipped_low,
        clipped_high,
        np.argwhere(dead.reshape(shape)),
        sample,
    )


class _Pixels:
    """What the values of each pixel have in common.

    Arguments:
        size: The number D of pixels of a measurement.
    """

    def __init__(self, size: int) -> None:
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)
        self.seen, self.pairs, self.equal = np.zeros((3, size), dtype=np.int64)
        self.last = np.full((1, size), np.nan)

    def add(self, values: np.ndarray, above: np.ndarray, below: np.ndarray) -> None:
        """Adds measurements, (n, D), also with ∞ and with −∞ where they are not finite."""
        self.low = np.minimum(self.low, above.min(axis=0))
        self.high = np.maximum(self.high, below.max(axis=0))
        finite = np.isfinite(values)
        self.seen += finite.sum(axis=0)
        pairs = np.concatenate([np.isfinite(self.last), finite[:-1]]) & finite
        self.pairs += pairs.sum(axis=0)
        self.equal += (pairs & (np.concatenate([self.last, values[:-1]]) == values)).sum(axis=0)
        self.last = values[-1:]

    def dead(self) -> np.ndarray:
        """Returns where all values are the same, (D,), unless chance explains it.

        Values that are counted are often the same as the one before, by a rate c. So are all n of
        a live pixel with the chance c^(n−1), which the other pixels tell.
        """
        found = (self.low == self.high) & (self.pairs >= REPEATS)
        live = (self.pairs > 0) & ~found
        if not live.any():
            return live
        rates = self.equal[live] / self.pairs[live]
        by_chance = float((rates ** self.pairs[live]).mean()) * len(found)
        return found & (found.mean() <= DEAD) & (by_chance < CHANCE)


def _limit(value: float, fraction: float, sample: np.ndarray, beside: np.ndarray) -> Limit | None:
    """Returns a limit if many more values are at it than at the levels beside it.

    Arguments:
        value: The smallest or the largest value.
        fraction: The fraction of the values at it.
        sample: Some of the measurements.
        beside: The values next to it that occur among them.
    """
    if fraction < FEW or not len(beside):
        return None
    among = np.isin(sample, beside).sum() / max(1, np.isfinite(sample).sum()) / len(beside)
    return Limit(value, fraction) if fraction > PILED * among else None


def _rows(held: Held, channel: Channel, count: int) -> Iterator[np.ndarray]:
    """Yields the values of the first measurements, (n, D), with a bar where it takes seconds."""
    chunks, long = list(row_chunks(held.y, count)), count * math.prod(held.y.shape[1:]) >= LONG
    with progress_bar("measurements  survey", len(chunks), "chunks", shown=long) as advance:
        for rows in chunks:
            yield _measured(held, channel, rows).reshape(len(rows), -1)
            advance()


def _measured(held: Held, channel: Channel, rows: np.ndarray) -> np.ndarray:
    """Returns measurements, (n, *M), with NaN where `operator` leaves them out.

    Raises:
        UserError: If `operator` does not fit the channel.
    """
    values, operator = held.y[rows], held.operator
    if operator is None or not isinstance(channel, LinearChannel):
        return values
    if not isinstance(own_operator(channel), Denoising | Mask | Weighting):
        measured = measured_entries(values, channel, operator[rows], source=held.name)
        return np.where(measured, values, np.nan)
    images = values.ndim > 2 and len(operator.shape) > 2
    if not images or operator.shape[-2:] != values.shape[-2:]:
        return values
    mask = operator[rows]
    if not np.isin(mask, (0, 1)).all():
        return values
    mask = mask[:, None] if mask.ndim < values.ndim else mask
    mask = mask[:, 0] if mask.ndim > values.ndim else mask
    return np.where(mask == 0, np.nan, values)


def _sample(held: Held, channel: Channel, count: int, dead: np.ndarray) -> np.ndarray:
    """Returns some measurements, evenly spread, in pairs of neighbours: exposures may repeat."""
    size = max(1, math.prod(held.y.shape[1:]))
    most = max(2, SAMPLE // size)
    if most >= count:
        rows = np.arange(count)
    else:
        first = np.linspace(0, count - 2, most // 2).astype(int) // 2 * 2
        rows = np.unique(np.concatenate([first, first + 1]))
    parts = []
    side = max(8, math.isqrt(max(1, SAMPLE * math.prod(held.y.shape[-2:]) // (2 * size))))
    for part in np.array_split(rows, math.ceil(len(rows) * size / READ)):
        values = _measured(held, channel, part)
        values = np.where(dead, np.nan, values) if dead.any() else values
        if values.ndim > 2:  # the middle of large images
            for axis in (-2, -1):
                start = max(0, values.shape[axis] - side) // 2
                values = np.take(values, range(start, min(start + side, values.shape[axis])), axis)
        parts.append(values)
    return np.concatenate(parts)
