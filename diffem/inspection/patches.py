"""Patches of measurements: how bright and how flat each is, and how far its neighbours differ.

The noise is seen in mixed differences d = Σ w y of neighbouring pixels, Σ w = 0 and Σ w² = 1 along
each axis, as (y₀₀ - y₀₁ - y₁₀ + y₁₁) / 2. Where the clean image is a polynomial of low degree, and
the noise of each pixel is independent, with a variance that is affine in its mean μ,

    E[d²] = Σ w² V[y] = gain · Σ w² μ + constant,

so that the mean of d² over patches belongs to the mean of Σ w² y over the same patches. Which
patches are compared is decided by other pixels than those whose d² is taken: a patch is a
chessboard of blocks, whose white ones choose for the black ones, and the other way round. Without
that, a patch would be chosen for what its noise happens to be.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product

import numpy as np

KERNELS = {  # along one axis, by the order of the difference; the sum of their squares is 1
    0: np.array([1.0]),
    1: np.array([1.0, -1.0]) / np.sqrt(2),
    2: np.array([1.0, -2.0, 1.0]) / np.sqrt(6),
    3: np.array([1.0, -3.0, 3.0, -1.0]) / np.sqrt(20),
}
REPEATED = 0.3  # of the variance of an image: repeated exposures differ by less
CLUSTERS = 200  # parts of the measurements that are resampled
FEW_IMAGES = 20  # of fewer, parts of images are resampled
SIDE = 8  # pixels of a patch, about


@dataclass(frozen=True)
class Frames:
    """Measurements as images, (M, H, W), or as signals, (M, 1, L)."""

    values: np.ndarray
    """What the brightness is taken from; NaN where nothing was measured."""
    differences: np.ndarray
    """What the noise is taken from: the values, or of repeated exposures (y - y') / √2."""
    clipped: np.ndarray
    """Where a value is one that the detector clips to."""
    image: np.ndarray
    """The number of the measurement that each is part of, (M,)."""

    @property
    def repeated(self) -> bool:
        """Whether neighbouring measurements are exposures of one scene, taken in pairs."""
        return self.differences is not self.values


def frames(
    y: np.ndarray, *, axes: int, clipped: Sequence[float] = (), pairs: bool = True
) -> Frames:
    """Returns measurements as frames; those that repeat one scene are taken in pairs.

    Arguments:
        y: Measurements, (N, …, *S), NaN where nothing was measured.
        axes: The number of axes of S, at least 1; of more than two, the last two are the images.
        clipped: The values that a detector clips to.
        pairs: Whether two that differ little are taken for exposures of one scene.
    """
    sides = y.shape[-min(axes, 2) :]
    values = y.astype(np.float64).reshape(len(y), -1, *((1, *sides) if len(sides) == 1 else sides))
    at_limit = np.isin(values, clipped)
    parts, even = values.shape[1], len(y) // 2 * 2
    flat = (-1, *values.shape[2:])
    if even and pairs:
        first, second = values[0:even:2], values[1:even:2]
        difference = (first - second) / np.sqrt(2)
        if _variance(difference) < REPEATED * _variance(values[:even]):
            return Frames(
                ((first + second) / 2).reshape(flat),
                difference.reshape(flat),
                (at_limit[0:even:2] | at_limit[1:even:2]).reshape(flat),
                np.repeat(np.arange(even // 2), parts),
            )
    together = values.reshape(flat)
    return Frames(together, together, at_limit.reshape(flat), np.repeat(np.arange(len(y)), parts))


def _variance(images: np.ndarray) -> float:
    """Returns the mean variance within an image; infinity if none has two values."""
    finite = np.isfinite(images)
    count = finite.sum(axis=(-2, -1))
    mean = np.where(finite, images, 0.0).sum(axis=(-2, -1)) / np.maximum(count, 1)
    square = np.where(finite, images - mean[..., None, None], 0.0) ** 2
    some = count > 1
    return float((square.sum(axis=(-2, -1))[some] / count[some]).mean()) if some.any() else np.inf


@dataclass(frozen=True)
class Patches:
    """Halves of patches, (n,) each: what one half chooses by, and the noise of the other half."""

    level: np.ndarray
    """The mean value of the choosing half."""
    spread: np.ndarray
    """The variance of its values about a smooth surface: structures and noise together."""
    third: np.ndarray
    """Their third cumulant (the k-statistic)."""
    clipped: np.ndarray
    """The fraction of the patch's values that the detector clipped."""
    mean: np.ndarray
    """The mean of Σ w² y over the blocks of the other half."""
    square: np.ndarray
    """The mean of Σ w² y² over these blocks, less what the noise adds: that of Σ w² μ²."""
    variance: np.ndarray
    """The mean of d² over these blocks."""
    peak: np.ndarray
    """The largest d² among them."""
    blocks: np.ndarray
    """Their number."""
    cluster: np.ndarray
    """The part of the measurements that the patch is resampled with."""

    def __len__(self) -> int:
        return len(self.level)

    def select(self, index: np.ndarray) -> "Patches":
        """Returns the patches at an index."""
        return Patches(*(getattr(self, field.name)[index] for field in fields(self)))


def take_patches(given: Frames, orders: tuple[int, int]) -> Patches | None:
    """Returns the patches of frames; None if no patch of two blocks fits into one.

    The frames are cut at several places, so that blocks overlap: the differences of two that do
    are nearly independent.

    Arguments:
        given: The frames.
        orders: The orders of the difference along rows and columns; 0 takes none.
    """
    block = tuple(len(KERNELS[order]) for order in orders)
    sides = given.values.shape[1:]
    size = [max(2, SIDE // s) for s in block]
    if sides[0] == 1:  # a signal
        size = [1, 2 * size[1]]
    size = [min(p, side // s) for p, s, side in zip(size, block, sides, strict=True)]
    if min(size) < 1 or size[0] * size[1] < 2:
        return None
    starts = product(*(sorted({0, s // 2}) for s in block))
    parts = [part for start in starts for part in _cut(given, orders, size, start)]
    if not parts:
        return None
    return Patches(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Patches)))


def _cut(
    given: Frames, orders: tuple[int, int], size: Sequence[int], start: Sequence[int]
) -> Iterator[Patches]:
    """Yields the patches whose white blocks choose, and those whose black ones do.

    Arguments:
        given: The frames.
        orders: The orders of the difference.
        size: The blocks of a patch along rows and columns.
        start: The first row and column.
    """
    vertical, horizontal = (KERNELS[order] for order in orders)
    block, sides = (len(vertical), len(horizontal)), given.values.shape[1:]
    patch = [p * s for p, s in zip(size, block, strict=True)]
    count = [(side - first) // p for side, first, p in zip(sides, start, patch, strict=True)]
    if not all(count):
        return
    rows, columns = (
        slice(first, first + n * p) for first, n, p in zip(start, count, patch, strict=True)
    )

    def cut(array: np.ndarray) -> np.ndarray:
        """Returns frames as (M, patches, blocks, pixels along rows; and along columns)."""
        kept = array[:, rows, columns]
        return kept.reshape(len(array), count[0], size[0], block[0], count[1], size[1], block[1])

    weigh = "mpaiqbj,i,j->mpqab"
    square = np.einsum(weigh, cut(given.differences), vertical, horizontal) ** 2
    local = np.einsum(weigh, cut(given.values), vertical**2, horizontal**2)
    second = np.einsum(weigh, cut(given.values) ** 2, vertical**2, horizontal**2)
    second -= square / 2 if given.repeated else square
    pixels = cut(given.values).transpose(0, 1, 4, 2, 5, 3, 6)  # (M, p, q, a, b, i, j)
    place = np.indices(patch).reshape(2, size[0], block[0], size[1], block[1])
    place = place.transpose(0, 1, 3, 2, 4)  # (2, a, b, i, j)
    clipped = cut(given.clipped).mean(axis=(2, 3, 5, 6))
    cluster = np.broadcast_to(_clusters(given.image, count), square.shape[:3])
    white = np.indices(tuple(size)).sum(axis=0) % 2 == 0
    for chooses in (white, ~white):
        chosen = pixels[:, :, :, chooses].reshape(*square.shape[:3], -1)
        smooth = _polynomials(place[:, chooses].reshape(2, -1), min(2, max(orders)))
        level, spread, third, values = _moments(chosen, smooth)
        noise, mean = square[:, :, :, ~chooses], local[:, :, :, ~chooses]
        bright = second[:, :, :, ~chooses]
        complete = np.isfinite(noise) & np.isfinite(mean)
        blocks = complete.sum(axis=-1)
        kept = (blocks > 0) & (values > 2)
        n = np.maximum(blocks, 1)
        yield Patches(
            level[kept],
            spread[kept],
            third[kept] * (4 if given.repeated else 1),  # of one exposure, not of a mean of two
            clipped[kept],
            (np.where(complete, mean, 0.0).sum(axis=-1) / n)[kept],
            (np.where(complete, bright, 0.0).sum(axis=-1) / n)[kept],
            (np.where(complete, noise, 0.0).sum(axis=-1) / n)[kept],
            np.where(complete, noise, 0.0).max(axis=-1)[kept],
            blocks[kept],
            cluster[kept],
        )


def _polynomials(place: np.ndarray, degree: int) -> np.ndarray:
    """Returns orthonormal polynomials of a degree over pixels, (n, K), but for the constant.

    Arguments:
        place: Row and column of each, (2, n).
        degree: Their degree, as a sum over both.
    """
    row, column = place - place.mean(axis=1, keepdims=True)
    powers = [
        row**i * column**j for i in range(degree + 1) for j in range(degree + 1 - i) if i + j
    ]
    centred = np.stack([p - p.mean() for p in powers], axis=1)
    basis, size, _ = np.linalg.svd(centred, full_matrices=False)
    return basis[:, size > 1e-6 * max(size.max(), 1)]


def _moments(
    pixels: np.ndarray, smooth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean, variance, third cumulant and number of the finite values of the last axis.

    Arguments:
        pixels: The pixels of patches, (…, n).
        smooth: Polynomials, (n, K), whose part is left out of the variance: the differences do
            not see it.
    """
    finite = np.isfinite(pixels)
    n = finite.sum(axis=-1)
    safe = np.maximum(n, 3)
    mean = np.where(finite, pixels, 0.0).sum(axis=-1) / np.maximum(n, 1)
    deviation = np.where(finite, pixels - mean[..., None], 0.0)
    rest = (deviation**2).sum(axis=-1) - ((deviation @ smooth) ** 2).sum(axis=-1)
    variance = rest.clip(min=0) / np.maximum(1, safe - 1 - smooth.shape[1])
    third = (deviation**3).sum(axis=-1) * safe / ((safe - 1) * (safe - 2))
    return mean, variance, third, n


def _clusters(image: np.ndarray, count: Sequence[int]) -> np.ndarray:
    """Returns the cluster of each patch, against (M, rows, columns): images, or parts of few."""
    total = int(image.max()) + 1
    if total >= FEW_IMAGES:
        return (image % CLUSTERS)[:, None, None]
    tiles = int(np.ceil(np.sqrt(3 * FEW_IMAGES / total)))
    row, column = (np.arange(n) * tiles // n for n in count)
    return (image[:, None, None] * tiles + row[:, None]) * tiles + column
