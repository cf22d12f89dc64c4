"""Bounds: a range [low, high] that the values of every clean image lie in, and its denoiser.

A mean of images in the range is in the range itself, so that clamping an estimate of E[x | x_t, y]
never takes it farther from the true one: it is the projection onto a convex set that holds it.
Saharia et al. (2022, arXiv 2205.11487) call it static thresholding; it is one discretisation of
a reflected SDE (Lou & Ermon 2023, arXiv 2304.04740), though not of one that was trained.
"""

import math
from typing import NamedTuple, Self

from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from torch import Tensor

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import RANGES, check

ENDLESS = (-math.inf, math.inf)
AUTO = "auto"
"""The value of `sampler.bounds` for bounds where the noise says nothing beyond them."""


class Bounds(NamedTuple):
    """The smallest and the largest value of an image, on the scale of [-1, 1]; ±∞ for none."""

    low: float
    high: float

    @classmethod
    def of(cls, value: object) -> Self:
        """Returns the bounds that `sampler.bounds` names.

        Raises:
            UserError: If it is no list of two numbers, or the first is not below the second.
        """
        refused = UserError(
            "sampler.bounds must be auto, null or two numbers [low, high] with low < high on the "
            f"scale of [-1, 1], got {value!r}"
        )
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise refused
        low, high = check(
            "sampler.bounds", value, own=RANGES["sampler.bounds"]._replace(also=ENDLESS)
        )
        if low >= high:
            raise refused
        return cls(low, high)

    def clamp(self, x: Tensor) -> Tensor:
        """Returns x with every value outside of the bounds replaced by the nearer bound."""
        return x.clamp(self.low, self.high)


class BoundedDenoiser(AzulaDenoiser):
    """E[x | x_t, y], guided or not, clamped.

    Arguments:
        denoiser: The denoiser whose estimate is clamped.
        bounds: The bounds.
    """

    def __init__(self, denoiser: AzulaDenoiser, bounds: Bounds) -> None:
        super().__init__()
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.bounds = bounds
        if hasattr(denoiser, "fused_noise"):  # what a sampler's last step may ask for
            self.fused_noise = denoiser.fused_noise

    def forward(self, x_t: Tensor, t: Tensor, **given: object) -> DiracPosterior:
        """Returns the clamped mean as a Dirac posterior.

        Arguments:
            x_t: Noisy images, (B, *shape).
            t: Times in [0, 1], (B,) or ().
            given: What else the denoiser is given, such as its condition.
        """
        return DiracPosterior(self.bounds.clamp(self.denoiser(x_t, t, **given).mean))
