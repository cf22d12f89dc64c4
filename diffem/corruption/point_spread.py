"""Point spread: A x = k * x with an instrument's own point spread function k."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffem.corruption.array_file import Nested, read_array
from diffem.corruption.convolution import Convolution
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


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

    def __init__(self, shape: Sequence[int], *, kernel: str | Nested) -> None:
        super().__init__(tuple(shape))
        values = read_array("kernel", kernel)
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
