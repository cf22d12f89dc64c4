"""Saturation: g(u) = clip(u, low, high), a detector's smallest and largest value."""

import torch
from torch import Generator, Tensor

from diffem.corruption.distortion import Distortion
from diffem.corruption.parameter import ROUNDING
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


class Saturation(Distortion):
    """Clips values, as an over-exposed detector does.

    Arguments:
        low: The smallest value, on the scale of [-1, 1].
        high: The largest one.

    Raises:
        UserError: If low is not below high.
    """

    pixelwise = True

    def __init__(self, *, low: float, high: float) -> None:
        self.low = float(check("corruption.low", low))
        self.high = float(check("corruption.high", high))
        if not self.low < self.high:
            raise UserError(
                f"corruption.low must be below corruption.high={self.high}, got {self.low}"
            )

    def apply(self, u: Tensor, parameters: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        return u.clamp(self.low, self.high)

    def undo(
        self, mean: Tensor, variance: Tensor, parameters: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        margin = ROUNDING * (self.high - self.low)
        for clipped, edge, end in (
            (mean <= self.low + margin, self.low, min(-1.0, self.low)),
            (mean >= self.high - margin, self.high, max(1.0, self.high)),
        ):
            mean = torch.where(clipped, (edge + end) / 2, mean)
            variance = torch.where(clipped, variance + (end - edge) ** 2 / 12, variance)
        return mean, variance
