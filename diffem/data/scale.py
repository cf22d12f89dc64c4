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
