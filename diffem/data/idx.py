"""Images in idx files: MNIST, Fashion-MNIST and others with the same four file names."""

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffem.data.labelled import LabelChoice
from diffem.data.scale import Scale, clean_images
from diffem.data.source import Labels, Splits, checked, inside
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
LARGEST = 2**33  # bytes of an unpacked file
DEFLATE = 1032  # the largest compression ratio (zlib's Technical Details)


class IdxImages:
    """A folder with train-images-idx3-ubyte and t10k-images-idx3-ubyte, plain or gzipped.

    Bytes are scaled from [0, 255] to [-1, 1].

    Arguments:
        path: The folder.
        shape: The shape of an image, (1, H, W).
        range: [low, high], the values that become -1 and 1; None for bytes alone. Nothing is
            clipped.
        train: The largest number of training images to use; None for all.
        heldout: The largest number of held-out images to use; None for all.
        only: The labels of which images are used, among those; None for all.
        thin: For some labels the fraction of their training images that is used.
        groups: The labels of each group but the last, which has the others; None for no groups.

    Raises:
        UserError: If a number is out of its range.
    """

    def __init__(
        self,
        path: str,
        shape: Sequence[int],
        *,
        range: Sequence[float] | None = None,
        train: int | None = None,
        heldout: int | None = None,
        only: Sequence[int] | None = None,
        thin: Mapping[str, float] | None = None,
        groups: list[Sequence[int]] | None = None,
    ) -> None:
        for key, number in (("train", train), ("heldout", heldout)):
            check(f"dataset.{key}", number)
        self.path = Path(path)
        self.shape = shape
        self.scale = Scale.of(range)
        self.train = train
        self.heldout = heldout
        self.choice = LabelChoice(only, thin, groups)

    def load(self) -> Splits:
        """Returns the images of both splits, (N, 1, H, W).

        Raises:
            UserError: If the folder or a file is missing, damaged, empty, of another shape, or of
                another type than bytes without a range.
        """
        train = self._images("train-images-idx3", self.train)
        heldout = self._images("t10k-images-idx3", self.heldout)
        images = Splits(train, heldout)
        if self.choice.selects:  # which needs the files of labels
            images = self.choice.select(images, self._labels())
        return checked(images, self.shape)

    def labels(self) -> Labels:
        """Returns the labels of both splits, (N,), from the folder's idx1 files.

        Raises:
            UserError: If a file is missing or damaged.
        """
        return self.choice.select_labels(self._labels())

    def groups(self) -> Labels | None:
        """Returns the number of each image's group, (N,); None without groups."""
        return self.choice.groups_of(self.labels()) if self.choice.groups is not None else None

    def _labels(self) -> Labels:
        train = read_idx(self._find("train-labels-idx1"), axes=1, limit=self.train)
        heldout = read_idx(self._find("t10k-labels-idx1"), axes=1, limit=self.heldout)
        return Labels(*(torch.from_numpy(part.astype(np.int64)) for part in (train, heldout)))

    def _images(self, stem: str, limit: int | None) -> Tensor:
        """Returns the images of one file, (N, 1, H, W), in [-1, 1]."""
        path = self._find(stem)
        return clean_images(read_idx(path, limit=limit)[:, None], self.scale, str(path))

    def _find(self, stem: str) -> Path:
        name = f"{stem}-ubyte"
        for path in (self.path / f"{name}.gz", self.path / name):
            if path.is_file():
                return inside(path, self.path)
        raise UserError(
            f"dataset.path: {self.path} has no {name} or {name}.gz; install Debian's package with "
            "`apt-get install dataset-fashion-mnist`, or give a folder that holds the idx files"
        )


def read_idx(path: Path, *, axes: int = 3, limit: int | None = None) -> np.ndarray:
    """Returns the content of an idx file: images, (N, H, W), or labels, (N,).

    No more is read or unpacked than the header announces, and than is used. The checksum of a
    gzipped file is verified where all of it is used.

    Arguments:
        path: The file, plain or gzipped.
        axes: The number of axes: 3 for images, 1 for labels.
        limit: The largest N; None for all that the file holds.

    Raises:
        UserError: If it is not such a file, or holds more or less than its header announces.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            size, dtype = _read_header(file.read(4 + 4 * axes), path, axes)
            length, used = 4 + 4 * axes + math.prod(size) * dtype.itemsize, size
            if limit is not None and limit < size[0] and _length(path) == length % 2**32:
                used = [limit, *size[1:]]
            wanted = math.prod(used) * dtype.itemsize
            data = file.read(wanted)
            # Reading to the end verifies the checksum of gzip.
            extra = used == size and len(file.read(1)) > 0
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); get the file again") from error
    if extra or len(data) != wanted:
        raise UserError(
            f"{path} announces {_product(size)} entries but holds "
            f"{'more' if extra else f'{len(data)} bytes'}; get the file again"
        )
    return np.frombuffer(data, dtype).reshape(used)[:limit]


def _length(path: Path) -> int:
    """Returns the number of bytes of a file's content, modulo 2^32, without unpacking it."""
    if path.suffix != ".gz":
        return path.stat().st_size % 2**32
    with path.open("rb") as file:
        file.seek(-min(4, path.stat().st_size), 2)
        return int.from_bytes(file.read(4), "little")  # ISIZE (RFC 1952)


def _read_header(head: bytes, path: Path, axes: int) -> tuple[list[int], np.dtype]:
    """Returns the size and the type that a header announces, if the file can hold as much."""
    if len(head) < 4 + 4 * axes or head[:2] != b"\0\0" or head[2] not in DTYPES or head[3] != axes:
        what = "images (N, H, W)" if axes == 3 else "labels (N,)"
        raise UserError(f"{path} is not an idx file of {what}; get the file again")
    size = [int(n) for n in np.frombuffer(head, ">u4", offset=4)]
    dtype = np.dtype(DTYPES[head[2]])
    held = path.stat().st_size * (DEFLATE if path.suffix == ".gz" else 1)
    if math.prod(size) * dtype.itemsize > min(held, LARGEST):
        raise UserError(
            f"{path} announces {_product(size)} entries, more than it can hold or than the "
            f"{LARGEST / 2**30:g} GiB that are read; get the file again"
        )
    return size, dtype


def _product(size: Sequence[int]) -> str:
    return " × ".join(map(str, size))
