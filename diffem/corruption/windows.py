"""Windows: where large images are cut, into patches to train on and into tiles to sample."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """A grid of windows of one size that covers an image.

    Along each axis the windows follow one another at even distances, and the last one is shifted
    back into the image, so that every pixel is in a window and no window leaves the image. They
    are numbered with the last axis running fastest.

    Arguments:
        shape: The sides *S of the image in pixels.
        sides: The sides of a window in pixels, at most those of the image.
        overlap: How many pixels neighbouring windows share along each axis, in [0, side); the
            shifted one shares more with the one before it.
    """

    shape: tuple[int, ...]
    sides: tuple[int, ...]
    overlap: tuple[int, ...]

    @classmethod
    def of(
        cls, shape: Sequence[int], sides: Sequence[int], overlap: Sequence[int] | int = 0
    ) -> "Windows":
        """Returns the windows on an image; an overlap of one number is that of each axis."""
        each = (overlap,) * len(sides) if isinstance(overlap, int) else tuple(overlap)
        return cls(tuple(shape), tuple(sides), each)

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """Where the windows begin, in pixels, along each axis."""
        return tuple(
            tuple(
                min(k * (side - overlap), length - side)
                for k in range(1 + math.ceil((length - side) / (side - overlap)))
            )
            for length, side, overlap in zip(self.shape, self.sides, self.overlap, strict=True)
        )

    @cached_property
    def _grid(self) -> tuple[int, ...]:
        return tuple(map(len, self.starts))

    def __len__(self) -> int:
        return math.prod(self._grid)

    def position(self, number: int) -> tuple[int, ...]:
        """Returns which of the windows along each axis a window is."""
        found = []
        for count in reversed(self._grid):
            number, k = divmod(number, count)
            found.append(k)
        return tuple(reversed(found))

    def corner(self, number: int) -> tuple[int, ...]:
        """Returns the first pixel of a window along each axis."""
        return tuple(own[k] for own, k in zip(self.starts, self.position(number), strict=True))

    def place(self, number: int) -> tuple[slice, ...]:
        """Returns a window as slices of the image's last axes."""
        corner = self.corner(number)
        return tuple(slice(a, a + s) for a, s in zip(corner, self.sides, strict=True))

    @cached_property
    def weights(self) -> tuple[Tensor, ...]:
        """What the windows count in a blend, (windows, side) for each axis.

        The weight of a window in a pixel is the product over the axes; the weights of all windows
        sum to 1 in each pixel. A quarter of the overlap from the window's edge inwards they are 0:
        there a denoiser sees too little of what is beyond the edge. Over the half in the middle
        they rise along a line. Edges of the image are none of these: nothing is beyond them.
        """
        axes = zip(self.shape, self.sides, self.overlap, self.starts, strict=True)
        return tuple(itertools.starmap(_axis_weights, axes))

    def weight(self, number: int) -> Tensor:
        """Returns the weight of a window in each of its pixels, (*sides)."""
        product = torch.ones(())
        for weights, k in zip(self.weights, self.position(number), strict=True):
            product = product[..., None] * weights[k]
        return product


def _axis_weights(length: int, side: int, overlap: int, starts: Sequence[int]) -> Tensor:
    """Returns the weights of the windows of one axis, (windows, side)."""
    margin = overlap // 4
    pixel = torch.arange(side, dtype=torch.float64)
    weights = torch.ones(len(starts), side, dtype=torch.float64)
    for distance, inner in ((pixel, slice(1, None)), (pixel.flip(0), slice(-1))):
        ramp = (distance - margin + 1) / (overlap - 2 * margin + 1)
        weights[inner] = weights[inner].minimum(ramp.clamp(0, 1))
    total = torch.zeros(length, dtype=torch.float64)
    for start, own in zip(starts, weights, strict=True):
        total[start : start + side] += own
    for start, own in zip(starts, weights, strict=True):
        own /= total[start : start + side]
    return weights.float()
