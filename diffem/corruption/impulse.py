"""Impulse noise: g(u) is u, but for a fraction of the entries, which are black or white."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.corruption.distortion import Distortion
from diffem.corruption.operator import expand
from diffem.corruption.parameter import ROUNDING, ChannelParameter


class Impulse(Distortion):
    """Salt and pepper: entries become -1 or 1 with equal probability.

    Where is not told, which makes it another problem than missing pixels.

    Arguments:
        fraction: The probability of an entry to be replaced, in (0, 1], or a range [low, high].
    """

    pixelwise = True

    def __init__(self, *, fraction: float | Sequence[float]) -> None:
        self.fraction = ChannelParameter.of("corruption.fraction", fraction)

    @property
    def parameters(self) -> dict[str, ChannelParameter]:
        return {"fraction": self.fraction}

    def apply(self, u: Tensor, parameters: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        chance = torch.rand(u.shape, generator=generator, device=u.device)
        fraction = expand(parameters[:, 0], u)
        replaced = torch.where(chance < fraction / 2, -1.0, 1.0).to(u)
        return torch.where(chance < fraction, replaced, u)

    def undo(
        self, mean: Tensor, variance: Tensor, parameters: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        # Noise hits neither -1 nor 1: an entry that has one of them was replaced.
        replaced = (mean.abs() - 1).abs() <= 2 * ROUNDING
        return torch.where(replaced, 0, mean), torch.where(replaced, 1 / 3, variance)
