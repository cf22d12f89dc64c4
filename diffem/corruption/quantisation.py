"""Quantisation: g(u) is the nearest of a few values between -1 and 1."""

from torch import Generator, Tensor

from diffem.corruption.distortion import Distortion
from diffem.runtime.ranges import check


class Quantisation(Distortion):
    """Rounds to the nearest of evenly spaced values from -1 to 1, as a converter of few bits does.

    Arguments:
        levels: The number of values, at least 2.

    Raises:
        UserError: If there are fewer.
    """

    pixelwise = True

    def __init__(self, *, levels: int) -> None:
        self.levels = check("corruption.levels", levels)

    def apply(self, u: Tensor, parameters: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        steps = self.levels - 1
        return ((u.clamp(-1, 1) + 1) / 2 * steps).round() / steps * 2 - 1

    def undo(
        self, mean: Tensor, variance: Tensor, parameters: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        step = 2 / (self.levels - 1)
        return mean, variance + step**2 / 12
