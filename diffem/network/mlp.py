"""Multilayer perceptron, for vectors."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from diffem.network.embedding import NoiseEmbedding
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


class MLP(nn.Module):
    """Perceptron with layer normalisation on (x_t, embedding of y, embedding of log σ_t).

    Arguments:
        shape: The shape of x, (D,).
        cond_channels: The number C' of features of the measurement's embedding; 0 for none.
        width: The width of the hidden layers.
        depth: The number of hidden layers.
        embedding: The number of features of the noise level's embedding, even.

    Raises:
        UserError: If x is not a vector, a number is below 1, or `embedding` is odd.
    """

    def __init__(
        self,
        shape: Sequence[int],
        cond_channels: int,
        *,
        width: int = 256,
        depth: int = 3,
        embedding: int = 64,
    ) -> None:
        super().__init__()
        if len(shape) != 1:
            raise UserError(
                f"network=mlp needs vectors of shape (D,), got {tuple(shape)}; "
                "use network=unet for images and signals"
            )
        for name, value in (("width", width), ("depth", depth), ("embedding", embedding)):
            check(f"network.{name}", value)
        if embedding % 2:
            raise UserError(f"network.embedding must be even, got {embedding}")
        (dim,) = shape
        self.cond_channels = cond_channels
        self.embedding = NoiseEmbedding(embedding)
        sizes = [dim + cond_channels + embedding, *[width] * depth]
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.LayerNorm(size_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], dim))

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        """Returns the raw output b_θ, (B, D).

        Arguments:
            x: Scaled noisy vectors, (B, D).
            c: Log noise levels, (B,) or ().
            cond: The measurement's embedding, (B, C'); None, as zeros, for no measurement.
        """
        embedding = self.embedding(c).expand(len(x), -1)
        if cond is None:
            cond = x.new_zeros(len(x), self.cond_channels)
        return self.layers(torch.cat([x, cond, embedding], dim=1))
