"""Samplers whose samples stay in a range: `sampler.bounds`."""

from typing import Any, TypeVar

from azula.denoise import Denoiser as AzulaDenoiser
from azula.sample import Sampler
from torch import Tensor

from diffem.denoiser.bounds import BoundedDenoiser, Bounds

S = TypeVar("S", bound=Sampler)


def bounded(sampler: type[S], bounds: Bounds | None) -> type[S]:
    """Returns a class of samplers with bounds.

    The denoiser's mean is clamped at every evaluation, guided or not, and so is the last sample,
    to which a sampler may have added noise. The class has `bounds`, and `confine`, which brings
    other images into the range.

    Arguments:
        sampler: The class of samplers, whose first argument is the denoiser.
        bounds: The bounds; None for the class as it is.
    """
    if bounds is None:
        return sampler
    base: Any = sampler
    limits = bounds

    class Bounded(base):
        bounds = limits
        confine = staticmethod(limits.clamp)

        def __init__(self, denoiser: AzulaDenoiser, *others: Any, **settings: Any) -> None:  # noqa: ANN401 - the base's
            super().__init__(BoundedDenoiser(denoiser, limits), *others, **settings)

        def __call__(self, x: Tensor, **given: Any) -> Tensor:  # noqa: ANN401 - the denoiser's
            return limits.clamp(super().__call__(x, **given))

    Bounded.__name__ = sampler.__name__  # as messages call it
    return Bounded


def bounds_of(sampler: object) -> Bounds | None:
    """Returns the bounds of a class of samplers, if it has any."""
    return getattr(sampler, "bounds", None)
