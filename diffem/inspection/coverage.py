"""Coverage: which pixels and which frequencies the measurements measure at all.

What measurements y = A x + noise say of x is in AᵀA. Its average over the measurements is probed
by vectors v of independent signs, or by all unit vectors where these are few,

    E[v ⊙ AᵀA v] = diag(AᵀA),        E[(V v)* ⊙ V AᵀA v] = diag(V AᵀA V*)

(Bekas, Kokiopoulou, Saad 2007), in pixels and in an orthonormal basis V of frequencies. A
direction of which it is 0 is measured by none of them: what EM puts there comes from its start and
the network alone, however many rounds it runs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import dctn
from torch import Tensor

from diffem.corruption import LinearChannel, Measurement
from diffem.corruption.recorded import Recorded
from diffem.data.measurements import MeasurementSet
from diffem.runtime.progress import progress_bar
from diffem.runtime.rng import generator

ENTRIES = 2**20  # of the images that are probed together
EXACT = 4096  # entries of an image of which each is probed, where there is one operator
EXACT_VECTOR = 256  # entries of a vector, of which each is probed under each operator
PROBES = 1024  # otherwise, at least
MOST = 2**27  # entries of all probes together
NEVER = 1e-5  # of the largest: rounding errors
HARDLY = 0.01  # of the largest, of frequencies and directions
HARDLY_PIXEL = 0.05  # of the median, of pixels
LONG = 2**25  # entries that take seconds


@dataclass(frozen=True)
class FrequencyCoverage:
    """How much of each frequency the measurements keep."""

    gain: np.ndarray
    """The diagonal of AᵀA in the basis, averaged over measurements and channels, (*S)."""
    radius: np.ndarray
    """The frequency in cycles a pixel, (*S); 0.5 is the finest along an axis."""

    @property
    def relative(self) -> np.ndarray:
        """The gain over the largest one, (*S)."""
        return self.gain / max(float(self.gain.max()), np.finfo(float).tiny)

    @property
    def removed(self) -> np.ndarray:
        """Where less than 1 % of the power is left, against the best measured frequency, (*S)."""
        return self.relative < HARDLY

    @property
    def cutoff(self) -> float | None:
        """The frequency above which all are removed; None if those removed are not the highest."""
        if not self.removed.any() or self.removed.all():
            return None
        kept = float(self.radius[~self.removed].max())
        above = self.radius > kept
        return kept if above.sum() > 0.5 * self.removed.sum() else None


@dataclass(frozen=True)
class Coverage:
    """What measurements measure, on average."""

    pixels: np.ndarray
    """The diagonal of AᵀA, averaged over measurements and channels: (*S), of vectors (D,)."""
    frequencies: FrequencyCoverage | None
    """The same by frequency; None of vectors."""
    directions: np.ndarray | None
    """Of vectors: unit vectors that are hardly or never measured, (n, D); None of images, and of
    vectors that are too long."""
    rows: int
    """The number of measurements that were looked at, the first ones."""
    count: int
    """The number of all measurements."""
    one_operator: bool
    """Whether all have the same operator."""
    pixelwise: bool
    """Whether each value measures one pixel."""

    @property
    def never(self) -> np.ndarray:
        """The places of the pixels that no measurement measures, (n, axes of S)."""
        return np.argwhere(self.pixels <= NEVER * self.pixels.max())

    @property
    def hardly(self) -> np.ndarray:
        """The places of the pixels that next to no measurement measures, (n, axes of S)."""
        few = self.pixels <= HARDLY_PIXEL * np.median(self.pixels)
        return np.argwhere(few & (self.pixels > NEVER * self.pixels.max()))


def take_coverage(measurements: MeasurementSet) -> Coverage | None:
    """Returns what measurements of a linear channel measure; None of another channel.

    Arguments:
        measurements: The measurements, with the parameters of their operators.
    """
    channel = measurements.channel
    if not isinstance(channel, LinearChannel):
        return None
    shape, size = channel.shape, math.prod(channel.shape)
    first = measurements.select(slice(0, 8))
    one = not isinstance(channel.forward_operator, Recorded) and bool(
        (first.operator == first.operator[:1]).all()
    )
    vector = len(shape) == 1 and size <= EXACT_VECTOR
    exact = vector or (one and size <= EXACT)
    each = size if exact else 1  # probes of a measurement
    rows = min(len(measurements), max(1, MOST // (size * each)))
    if one:
        rows = 1 if exact else PROBES
    turns = 1 if exact else math.ceil(PROBES / rows)
    sums = _Sums(shape, matrix=vector)
    step = max(1, ENTRIES // (size * each))
    starts = [(turn, start) for turn in range(turns) for start in range(0, rows, step)]
    long = len(starts) * min(step, rows) * size * each > LONG
    with progress_bar("coverage", len(starts), "parts", shown=long) as advance:
        for turn, start in starts:
            index = torch.arange(start, min(rows, start + step))
            part = first.select(0 * index) if one else measurements.select(index)
            for v, measurement in _probes(part, shape, exact=exact, key=(turn, start)):
                sums.add(v, _normal(channel, v, measurement))
            advance()
    return Coverage(
        sums.pixels(),
        sums.frequencies(),
        sums.directions(),
        len(measurements) if one else rows,
        len(measurements),
        one,
        channel.forward_operator.pixelwise,
    )


def _probes(
    part: Measurement, shape: Sequence[int], *, exact: bool, key: tuple[int, int]
) -> Iterator[tuple[Tensor, Measurement]]:
    """Yields probes, (B, *shape), and the measurements by whose operators they go."""
    n, size = len(part.y), math.prod(shape)
    if not exact:
        signs = torch.randint(0, 2, (n, *shape), generator=generator("coverage", *key))
        yield 2.0 * signs - 1.0, part
        return
    step = max(1, ENTRIES // size)
    for start in range(0, n * size, step):
        number = torch.arange(start, min(n * size, start + step))
        v = torch.nn.functional.one_hot(number % size, size).float()
        yield v.reshape(-1, *shape), part.select(number // size)


def _normal(channel: LinearChannel, v: Tensor, measurement: Measurement) -> Tensor:
    """Returns AᵀA v, (B, *shape)."""
    operator = measurement.operator
    y = channel.apply(v, operator)
    return channel.adjoint(y * channel.measured_mask(y, operator), operator)


class _Sums:
    """Sums over probes, and the diagonals of the average of AᵀA that follow from them.

    Arguments:
        shape: The shape of x, (C, *S) or (D,).
        matrix: Whether AᵀA itself is summed, of vectors; the probes must be all unit vectors.
    """

    def __init__(self, shape: Sequence[int], *, matrix: bool) -> None:
        self.shape = tuple(shape)
        self.axes = tuple(range(2, 1 + len(shape)))
        self.bases: list[Callable[[np.ndarray], np.ndarray]] = []
        self.radii: list[np.ndarray] = []
        self.diagonal = np.zeros(self.shape)
        self.square = np.zeros(self.shape)
        size = math.prod(self.shape)
        self.matrix = np.zeros((size, size)) if matrix else None
        if self.axes:
            sides = self.shape[1:]
            # One of the two is close to the operator's own: that of a circle, or of mirrors.
            self.bases = [
                lambda x: np.fft.fftn(x, axes=self.axes, norm="ortho"),
                lambda x: np.asarray(dctn(x, axes=self.axes, norm="ortho")),
            ]
            self.radii = [
                _radius([np.abs(np.fft.fftfreq(side)) for side in sides]),
                _radius([np.arange(side) / (2 * side) for side in sides]),
            ]
        self.sums = [np.zeros((3, *self.shape)) for _ in self.bases]

    def add(self, v: Tensor, seen: Tensor) -> None:
        """Adds probes v and AᵀA v, (B, *shape) each."""
        given, found = v.double().numpy(), seen.double().numpy()
        self.diagonal += (given * found).sum(axis=0)
        self.square += (given**2).sum(axis=0)
        if self.matrix is not None:
            self.matrix += given.T @ found
        for basis, sums in zip(self.bases, self.sums, strict=True):
            a, b = basis(given), basis(found)
            sums[0] += np.real(a.conj() * b).sum(axis=0)
            sums[1] += (np.abs(a) ** 2).sum(axis=0)
            sums[2] += (np.abs(b) ** 2).sum(axis=0)

    def pixels(self) -> np.ndarray:
        """Returns the diagonal of AᵀA, averaged over channels, (*S) or (D,)."""
        found = self.diagonal / self.square
        return found.mean(axis=0) if self.axes else found

    def frequencies(self) -> FrequencyCoverage | None:
        """Returns the diagonal in the basis in which AᵀA is closest to one; None of vectors."""
        if not self.bases:
            return None
        found = []
        for (along, given, seen), radius in zip(self.sums, self.radii, strict=True):
            # What AᵀA v has beside the diagonal times v.
            rest = float((seen - along**2 / given).sum())
            gain = (along.sum(axis=0) / given.sum(axis=0)).clip(min=0)
            found.append((rest, FrequencyCoverage(gain, radius)))
        return min(found, key=lambda pair: pair[0])[1]

    def directions(self) -> np.ndarray | None:
        """Returns unit vectors of which less than 1 % of the largest power is measured, (n, D).

        Returns:
            None where AᵀA itself was not summed.
        """
        if self.matrix is None:
            return None
        values, vectors = np.linalg.eigh((self.matrix + self.matrix.T) / 2)
        return vectors.T[values < HARDLY * values.max()]


def _radius(along: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the length of the frequency whose parts along the axes are given, (*S)."""
    return np.sqrt(sum(part**2 for part in np.meshgrid(*along, indexing="ij")))
