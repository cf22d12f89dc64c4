"""A batch of linear Gaussian inverse problems over vectors, as azula's guidance takes them.

azula's linear solvers take the last axis as the vector: images are flattened around them.
"""

from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from torch import Tensor

from diffem.corruption import LinearGaussianChannel, Measurement


class FlatDenoiser(AzulaDenoiser):
    """A denoiser of vectors (B, D) made from one of images (B, *shape)."""

    def __init__(self, denoiser: AzulaDenoiser, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.shape = shape
        self.schedule = denoiser.schedule

    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:  # type: ignore[override]
        """Returns the denoised vectors, (B, D)."""
        mean = self.denoiser(x_t.unflatten(1, self.shape), t).mean
        return DiracPosterior(mean=mean.flatten(1))


class LinearProblem:
    """y = A x + σ_y ε over vectors.

    Attributes:
        y: Measurements, (B, M).
        var: Noise variances σ_y², (B, 1).
    """

    def __init__(self, channel: LinearGaussianChannel, measurement: Measurement) -> None:
        self.channel = channel
        self.operator = measurement.operator
        self.y = measurement.y.flatten(1)
        self.var = channel.variance(measurement).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns A x, (B, M)."""
        x = x.unflatten(1, self.channel.shape)
        return self.channel.apply(x, self.operator).flatten(1)
