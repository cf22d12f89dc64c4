"""Point spread: A x = k * x with an instrument's own point spread function k."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffem.corruption.convolution import Convolution
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check

Kernel = str | Sequence[float | Sequence[float | Sequence[float]]]


class PointSpread(Convolution):
    """Convolves each channel with a given point spread function, over periodic borders.

    Arguments:
        shape: The shape of x, (C, *S).
        kernel: The point spread function: the path of a .npy, PNG or TIFF file, or nested lists
            of its values; as many axes as *S, each side odd and no longer than that of x, the
            centre in the middle. It is divided by its sum.

    Raises:
        UserError: If it cannot be read, has another number of axes, an even or too long side, a
            negative or non-finite value, or a sum of 0.
    """

    def __init__(self, shape: Sequence[int], *, kernel: Kernel) -> None:
        super().__init__(tuple(shape))
        values = read_kernel(kernel)
        sides = self.shape[1:]
        fits = values.ndim == len(sides) and all(
            k % 2 and k <= side for k, side in zip(values.shape, sides, strict=True)
        )
        if not fits:
            raise UserError(
                f"corruption.kernel must have {len(sides)} axes of odd length up to {list(sides)}"
                f", its centre in the middle, got the shape {list(values.shape)}; crop or pad it"
            )
        check("corruption.kernel", values.ravel().tolist())
        if not values.any():
            raise UserError("corruption.kernel must have a value above 0; give another")
        padded = np.zeros(sides)
        padded[tuple(slice(0, k) for k in values.shape)] = values / values.sum()
        centred = np.roll(padded, [-(k // 2) for k in values.shape], range(len(sides)))
        self._kernel = torch.from_numpy(centred).float()[None, None]

    def kernel(self, operator: Tensor) -> Tensor:
        return self._kernel.to(operator.device)


def kernel_files(node: Mapping[Any, Any]) -> Iterator[Any]:
    """Yields those parts of a corruption whose kernel is the path of a file.

    Arguments:
        node: A node of conf/corruption, in plain types.
    """
    for part in (node, *(node.get("parts") or ())):
        if isinstance(part, Mapping) and isinstance(part.get("kernel"), str):
            yield part


def read_kernel(kernel: Kernel) -> np.ndarray:
    """Returns a point spread function's values, float64.

    Arguments:
        kernel: Nested lists of numbers, or the path of a .npy file or a grey PNG or TIFF image.

    Raises:
        UserError: If it is neither, or the file cannot be read.
    """
    name = f"corruption.kernel={kernel if isinstance(kernel, str) else '[…]'}"
    try:
        if not isinstance(kernel, str):
            return np.array(kernel, dtype=np.float64)
        if Path(kernel).suffix.lower() == ".npy":
            values = np.load(kernel, allow_pickle=False)
        else:
            with Image.open(kernel, formats=("PNG", "TIFF")) as image:
                values = np.asarray(image)
        return values.astype(np.float64)
    except Exception as error:  # decoders raise many types
        raise UserError(
            f"{name} cannot be read as numbers ({' '.join(str(error).split())}); give the path "
            "of a .npy, PNG or TIFF file, or nested lists of numbers"
        ) from error
