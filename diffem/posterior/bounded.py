"""Samplers whose samples stay in a range: `sampler.bounds`.

A sample is clamped once it is drawn. The nearest image in the range is never farther from the true
one, which is in it: clamping is the projection onto a convex set. Denoisers are left as they are.
To clamp E[x | x_t, y] at every step as well (static thresholding; Saharia et al. 2022, arXiv
2205.11487) cuts the errors of dark pixels off on one side, step by step, and their mean rises.
"""

import math
from typing import Any, NamedTuple, Self, TypeVar

from azula.sample import Sampler
from torch import Tensor

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import RANGES, check

S = TypeVar("S", bound=Sampler)
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
            UserError: If it is no list of two numbers, the first is not below the second, or
                both are infinite.
        """
        refused = UserError(
            "sampler.bounds must be auto, null or two numbers [low, high] with low < high, of "
            f"which one may be infinite, on the scale of [-1, 1], got {value!r}"
        )
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise refused
        low, high = check(
            "sampler.bounds", value, own=RANGES["sampler.bounds"]._replace(also=ENDLESS)
        )
        if low >= high or (low, high) == ENDLESS:
            raise refused
        return cls(low, high)

    def clamp(self, x: Tensor) -> Tensor:
        """Returns x with every value outside of the bounds replaced by the nearer bound."""
        return x.clamp(self.low, self.high)


def bounded(sampler: type[S], bounds: Bounds | None) -> type[S]:
    """Returns a class of samplers whose samples are clamped.

    The class has `bounds`, and `confine`, which brings other images into the range.

    Arguments:
        sampler: The class of samplers.
        bounds: The bounds; None for the class as it is.
    """
    if bounds is None:
        return sampler
    base: Any = sampler
    limits = bounds

    class Bounded(base):
        bounds = limits
        confine = staticmethod(limits.clamp)

        def __call__(self, x: Tensor, **given: Any) -> Tensor:  # noqa: ANN401 - the denoiser's
            return limits.clamp(super().__call__(x, **given))

    Bounded.__name__ = sampler.__name__  # as messages call it
    return Bounded


def bounds_of(sampler: object) -> Bounds | None:
    """Returns the bounds of a class of samplers, if it has any."""
    return getattr(sampler, "bounds", None)
