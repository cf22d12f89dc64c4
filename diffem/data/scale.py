"""The scale of data: an affine map between their own units and [-1, 1]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] in the data's units to [-1, 1]; values outside are mapped on, not clipped.

    Raises:
        UserError: If the range is not two finite numbers, low < high.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        numbers = all(isinstance(b, int | float) for b in (self.low, self.high))
        if not numbers or not -float("inf") < self.low < self.high < float("inf"):
            raise UserError(
                f"dataset.range must be [low, high] with low < high, got [{self.low}, {self.high}]"
            )
        check("dataset.range", (self.low, self.high))

    @classmethod
    def of(cls, bounds: Sequence[float] | None) -> Self | None:
        """Returns the scale of `dataset.range`; None for null.

        Raises:
            UserError: If it is not two finite numbers, low < high.
        """
        if bounds is None:
            return None
        if not isinstance(bounds, Sequence) or isinstance(bounds, str) or len(bounds) != 2:
            raise UserError(f"dataset.range must be [low, high] with low < high, got {bounds}")
        return cls(*bounds)

    @property
    def factor(self) -> float:
        """The size of one unit of the data on the scale of [-1, 1]."""
        return 2 / (self.high - self.low)

    @property
    def centre(self) -> float:
        """The value in the data's units that becomes 0."""
        return (self.low + self.high) / 2

    def normalise(self, y: Tensor) -> Tensor:
        """Returns values in the data's units on the scale of [-1, 1]; [-1, 1] itself stays."""
        # The centre first: y - low and a later - 1 would round twice.
        return (y - self.centre) * self.factor

    def denormalise(self, x: Tensor) -> Tensor:
        """Returns values on the scale of [-1, 1] in the data's units; [-1, 1] itself stays."""
        # Minus minus the centre: x + 0.0 would lose the sign of x = -0.0.
        return x / self.factor - (0.0 - self.centre)


def clean_images(pixels: np.ndarray, scale: Scale | None, name: str) -> Tensor:
    """Returns a benchmark's images on the scale of [-1, 1], float32.

    Unsigned 8-bit and 16-bit numbers are scaled from all that their type holds.

    Arguments:
        pixels: The images, (N, …), in their own dtype.
        scale: The values that become -1 and 1; None for those of the type.
        name: What the sentence calls the images.

    Raises:
        UserError: If the type does not say which values become -1 and 1, or one is not finite.
    """
    if scale is not None:
        return scale.normalise(torch.from_numpy(pixels.astype(np.float64))).float()
    largest = {"uint8": 255, "uint16": 65535}.get(pixels.dtype.name)
    if largest is None:
        if not np.isfinite(pixels).all():
            raise UserError(f"{name} holds NaN or infinity; remove or repair such images")
        found = f"[{pixels.min():g}, {pixels.max():g}]" if pixels.size else "nothing"
        raise UserError(
            f"dataset.range must say which values become -1 and 1: {name} is {pixels.dtype.name} "
            f"with values in {found}; give [low, high]"
        )
    return torch.from_numpy(pixels.astype(np.float32)).div_(largest / 2).sub_(1)
