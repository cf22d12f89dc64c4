"""The scale of measurements: an affine map between the data's own units and [-1, 1]."""

from dataclasses import dataclass

from torch import Tensor

from diffem.runtime.errors import UserError


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

    @property
    def factor(self) -> float:
        """The size of one unit of the data on the scale of [-1, 1]."""
        return 2 / (self.high - self.low)

    def normalise(self, y: Tensor) -> Tensor:
        """Returns values in the data's units on the scale of [-1, 1]."""
        return (y - self.low) * self.factor - 1

    def denormalise(self, x: Tensor) -> Tensor:
        """Returns values on the scale of [-1, 1] in the data's units."""
        return (x + 1) / self.factor + self.low
