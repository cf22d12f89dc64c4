"""Points on a smooth random closed curve in R^D: a one-dimensional manifold."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffem.data.source import Splits, checked
from diffem.runtime.ranges import check
from diffem.runtime.rng import generator


class Manifold:
    """Points x(u) of a random Fourier curve, u ~ U(0, 1), each coordinate scaled to [-2, 2].

        x_d(u) = Σ_f (a_fd cos 2πfu + b_fd sin 2πfu) / f^smoothness,   a, b ~ N(0, 1)

    Arguments:
        shape: (D,).
        train: The number of training points.
        heldout: The number of held-out points.
        frequencies: The number of frequencies f = 1, 2, ….
        smoothness: The exponent of the decay of the amplitudes.

    Raises:
        UserError: If a number is below 1.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        train: int,
        heldout: int,
        frequencies: int = 5,
        smoothness: float = 1.5,
    ) -> None:
        self.shape = tuple(shape)
        self.sizes = (
            check("dataset.train@manifold", train),
            check("dataset.heldout@manifold", heldout),
        )
        self.frequencies = check("dataset.frequencies", frequencies)
        self.smoothness = check("dataset.smoothness", smoothness)

    def load(self) -> Splits:
        """Returns the points of both splits, (N, D); the curve is the same for every seed."""
        gen = generator("manifold")
        amplitude = torch.randn(2, self.frequencies, *self.shape, generator=gen)

        def curve(u: Tensor) -> Tensor:
            f = torch.arange(1, self.frequencies + 1)
            phase = 2 * math.pi * u[:, None] * f
            waves = torch.stack([phase.cos(), phase.sin()])
            return torch.einsum("anf,afd->nd", waves, amplitude / f[:, None] ** self.smoothness)

        grid = curve(torch.linspace(0, 1, 4097))
        low, high = grid.min(dim=0).values, grid.max(dim=0).values
        points = [
            4 * (curve(torch.rand(n, generator=gen)) - low) / (high - low) - 2 for n in self.sizes
        ]
        return checked(Splits(points[0], points[1]), self.shape)
