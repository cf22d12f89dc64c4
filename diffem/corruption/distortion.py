"""Distortions g_φ: what happens to a measurement after its noise, and is not linear."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Generator, Tensor

from diffem.corruption.noise import Noise
from diffem.corruption.parameter import ChannelParameter, assume_each, draw_each


class Distortion(ABC):
    """Abstract map of noisy images, y = g_φ(A x + noise), that keeps their shape.

    Numbers are on the scale of images in [-1, 1], which for measurements of one's own is that of
    `dataset.range`.
    """

    pixelwise = False
    """Whether each pixel of y depends on that pixel of A x + noise alone."""

    def __str__(self) -> str:
        return type(self).__name__

    @property
    def parameters(self) -> dict[str, ChannelParameter]:
        """The parameters φ in the order in which a measurement carries them."""
        return {}

    def check(self, shape: Sequence[int], noise: Noise) -> None:
        """Refuses measurements that it cannot distort.

        Arguments:
            shape: The shape M of a measurement.
            noise: The noise before it.

        Raises:
            UserError: If they are of another shape, or their noise is another, than it takes.
        """
        return

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Draws φ of n samples, (n, P)."""
        return draw_each(self.parameters, n, generator)

    def assume(self, parameters: Tensor) -> Tensor:
        """Returns φ with the known parameters in place of the drawn ones, (B, P)."""
        return assume_each(self.parameters, parameters)

    def undo(
        self, mean: Tensor, variance: Tensor, parameters: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Returns the mean and the variance of u, given those of g_φ(u), (B, *M) each.

        Each entry is taken by itself, with a flat law of u in [-1, 1]. Round 0 and the fusion of
        y with x_t rest on it. None, as here, says that it is not known.

        Arguments:
            mean: The mean of g_φ(u), (B, *M).
            variance: Its variance, 0 where it was measured, (B, *M).
            parameters: φ of each, (B, P).
            noise: The parameters of the noise before it, (B, K).
        """
        return None

    @abstractmethod
    def apply(self, u: Tensor, parameters: Tensor, noise: Tensor, generator: Generator) -> Tensor:
        """Returns g_φ(u), (B, *M).

        Arguments:
            u: Noisy images, (B, *M).
            parameters: φ of each, (B, P).
            noise: The parameters of the noise before it, (B, K).
            generator: The source of all randomness, where g is random.
        """
