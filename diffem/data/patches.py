"""Patches: pieces of one size of larger images, as rows of their own."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from diffem.corruption import Windows
from diffem.data.npy import Rows
from diffem.data.recent import RecentArrays


class Patches:
    """The windows of images as rows, in the images' order and then that of each one's windows.

    An image is read whole when one of its patches is asked for; those read last are kept, to cut
    the next patches from.

    Arguments:
        images: The images, (N, …, *S), or what else there is of each, (N, …): the sides S may
            differ from one to another.
        windows: The windows on each image that is used, by the image's number; all of one size.
        cut: Whether the last axes are those of the image; otherwise each patch has all that there
            is of its image.
    """

    def __init__(self, images: Rows, windows: Mapping[int, Windows], *, cut: bool = True) -> None:
        self.images, self.cut = images, cut
        self.numbers, self.windows = list(windows), list(windows.values())
        self.first = np.cumsum([0, *map(len, self.windows)])
        sides = self.windows[0].sides
        inner = images.shape[1:]
        self._shape = (*inner[: len(inner) - len(sides)], *sides) if cut else tuple(inner)
        self._recent = RecentArrays()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all patches, (P, …, *sides)."""
        return len(self), *self._shape

    @property
    def dtype(self) -> np.dtype:
        """The type of the numbers."""
        return self.images.dtype

    def __len__(self) -> int:
        return int(self.first[-1])

    def origin(self, row: int) -> tuple[int, tuple[int, ...]]:
        """Returns the number of the image that a patch is from, and its first pixel there."""
        k = self._used(np.array([row]))[0]
        return self.numbers[k], self.windows[k].corner(int(row - self.first[k]))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns patches, (n, …, *sides), in the images' dtype."""
        rows = np.asarray(rows)
        used = self._used(rows)
        patches = np.empty((len(rows), *self._shape), self.dtype)
        for k in np.unique(used):
            here = np.flatnonzero(used == k)
            image = self._image(self.numbers[k])
            if not self.cut:
                patches[here] = image
                continue
            for i in here:
                place = self.windows[k].place(int(rows[i] - self.first[k]))
                patches[i] = image[(..., *place)]
        return patches

    def _used(self, rows: np.ndarray) -> np.ndarray:
        """Returns which of the images that are used patches are from, (n,)."""
        return np.searchsorted(self.first, rows, side="right") - 1

    def _image(self, number: int) -> np.ndarray:
        """Returns an image, (…, *S), read now or kept."""
        return self._recent.get(number, lambda: self.images[np.array([number])][0])


def shapes_of(images: Rows) -> Sequence[tuple[int, ...]] | None:
    """Returns the shape of each image of a folder whose images may differ in size; else None."""
    return getattr(images, "shapes", None)


def are_larger(shapes: Collection[Sequence[int]], shape: Sequence[int]) -> bool:
    """Returns whether images are of several sizes, or of one that is larger than a shape.

    Arguments:
        shapes: The shapes of the images; of grey ones the axis of channels may be missing.
        shape: The shape, (C, *S) or (D,).
    """
    found, sides = set(map(tuple, shapes)), tuple(shape[1:])
    if len(found) > 1:
        return True
    (own,) = found
    own = own[len(own) - len(sides) :]
    return (
        len(own) == len(sides)
        and own != sides
        and all(a >= b for a, b in zip(own, sides, strict=True))
    )
