"""Gamma: g(u) = 2 ((u + 1) / 2)^γ - 1, a detector whose response is not linear."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.corruption.distortion import Distortion
from diffem.corruption.operator import expand
from diffem.corruption.parameter import ChannelParameter


class Gamma(Distortion):
    """Raises intensities to a power; those below 0 are taken for 0.

    Arguments:
        gamma: γ > 0, or a range [low, high].
    """

    pixelwise = True

    def __init__(self, *, gamma: float | Sequence[float]) -> None:
        self.gamma = ChannelParameter.of("corruption.gamma", gamma)

    @property
    def parameters(self) -> dict[str, ChannelParameter]:
        return {"gamma": self.gamma}

    def apply(self, u: Tensor, parameters: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        intensity = ((u + 1) / 2).clamp(min=0)
        return 2 * intensity ** expand(parameters[:, 0], u) - 1

    def undo(
        self, mean: Tensor, variance: Tensor, parameters: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        gamma = expand(parameters[:, 0], mean)
        # A mean within a standard deviation of black is taken for as far: the slope there is 0.
        intensity = ((mean + 1) / 2).clamp(min=0)
        slope = gamma * intensity.maximum(variance.sqrt() / 2) ** ((gamma - 1) / gamma)
        spread = torch.where(variance > 0, variance / slope.square(), 0)
        return 2 * intensity ** (1 / gamma) - 1, spread
