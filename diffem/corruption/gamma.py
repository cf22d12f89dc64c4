"""Gamma: g(u) = 2 ((u + 1) / 2)^γ - 1, a detector whose response is not linear."""

from collections.abc import Sequence

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
        return _power(u, parameters[:, 0])

    def preimage(
        self, low: Tensor, high: Tensor, parameters: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        return _power(low, 1 / parameters[:, 0]), _power(high, 1 / parameters[:, 0])


def _power(u: Tensor, exponent: Tensor) -> Tensor:
    """Returns 2 I^e - 1 of u = 2 I - 1, (B, *M), with exponents e of each, (B,)."""
    return 2 * ((u + 1) / 2).clamp(min=0) ** expand(exponent, u) - 1
