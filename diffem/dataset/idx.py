"""Images in idx files: MNIST, Fashion-MNIST and whatever has their four file names."""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffem.dataset.base import Splits, checked, limited
from diffem.error import UserError

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class IdxImages:
    """A folder with train-images-idx3-ubyte and t10k-images-idx3-ubyte, plain or gzipped.

    Bytes are scaled from [0, 255] to [-1, 1]; floating-point files are taken as they are.

    Arguments:
        path: The folder.
        shape: The shape of an image, (1, H, W).
        train: The number of training images to use; None for all.
        heldout: The number of held-out images to use; None for all.
    """

    def __init__(
        self,
        path: str,
        shape: Sequence[int],
        *,
        train: int | None = None,
        heldout: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.shape = shape
        self.train = train
        self.heldout = heldout

    def load(self) -> Splits:
        """Returns the images of both splits, (N, 1, H, W).

        Raises:
            UserError: If the folder or a file is missing, damaged, empty or of another shape.
        """
        train = limited(read_idx(self._find("train")), self.train)
        heldout = limited(read_idx(self._find("t10k")), self.heldout)
        return checked(Splits(train[:, None], heldout[:, None]), self.shape)

    def _find(self, split: str) -> Path:
        name = f"{split}-images-idx3-ubyte"
        for path in (self.path / f"{name}.gz", self.path / name):
            if path.is_file():
                return path
        raise UserError(
            f"dataset.path: {self.path} has no {name} or {name}.gz; install Debian's package with "
            "`apt-get install dataset-fashion-mnist`, or give a folder that holds the idx files"
        )


def read_idx(path: Path) -> Tensor:
    """Reads an idx file of images, (N, H, W), float32.

    Raises:
        UserError: If it is no idx file of images, or is cut short.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); get the file again") from error
    if len(data) < 16 or data[:2] != b"\0\0" or data[2] not in DTYPES or data[3] != 3:
        raise UserError(f"{path} is not an idx file of images (N, H, W); get the file again")
    size = [int(n) for n in np.frombuffer(data, ">u4", count=3, offset=4)]
    dtype = np.dtype(DTYPES[data[2]])
    if len(data) != 16 + math.prod(size) * dtype.itemsize:
        raise UserError(
            f"{path} announces {size[0]} images of {size[1]} × {size[2]} but holds "
            f"{len(data) - 16} bytes; get the file again"
        )
    x = torch.from_numpy(np.frombuffer(data, dtype, offset=16).astype(np.float32).reshape(size))
    return x / 127.5 - 1 if dtype.kind == "u" else x
