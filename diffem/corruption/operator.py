"""Forward operators: A_φ of y = A_φ x + noise, with parameters φ drawn for each sample."""

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Generator, Tensor

from diffem.corruption.parameter import ChannelParameter
from diffem.corruption.spectrum import Spectrum

T = TypeVar("T")


class OnDevice(Protocol):
    """A tensor, or what holds tensors."""

    @property
    def device(self) -> torch.device:
        """The device."""
        ...


def full_precision(method: Callable[..., T]) -> Callable[..., T]:
    """Keeps matrix products out of autocast, which would round them to bfloat16.

    Arguments:
        method: A method, or a function whose second argument has a device.
    """

    @functools.wraps(method)
    def exact(self: object, x: OnDevice, *args: Any, **kwargs: Any) -> T:  # noqa: ANN401
        with torch.autocast(x.device.type, enabled=False):
            return method(self, x, *args, **kwargs)

    return exact


class LinearOperator(ABC):
    """Abstract linear forward operator A_φ.

    A method that multiplies matrices is decorated by `full_precision`, so that the operator is
    exact whatever the trainer's precision.

    Arguments:
        shape: The shape of x: (C, *S) for images and signals, (D,) for vectors.
    """

    preserves_intensity = False
    """Whether A maps constant images to the same constant and non-negative ones to non-negative
    ones, so that A x is an intensity where x is one; photon noise needs that."""

    keeps_units = True
    """Whether A x is in the units of x, so that the range of measurements tells that of images."""

    keeps_coefficients = False
    """Whether A keeps some coefficients of x, which φ draws at random, and removes the others."""

    holds_nan = False
    """Whether NaN among φ says that a part of the measurement was not taken."""

    covers: bool | None = False
    """Whether φ is drawn, whatever x is, so that every direction of x is measured under some φ;
    None where the law of φ is not known."""

    pixelwise = False
    """Whether y has the grid of x, and each of its pixels depends on that pixel of x and of φ
    alone, so that a piece of a measurement is the measurement of that piece of x. Large images are
    cut into such pieces."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    @property
    def parameters(self) -> dict[str, ChannelParameter]:
        """The parameters that can be assumed or learned, by attribute name."""
        return {}

    def with_parameters(self, parameters: Mapping[str, ChannelParameter]) -> Self:
        """Returns a copy with other parameters; this operator stays as it is."""
        new = copy.copy(self)
        for name, parameter in parameters.items():
            setattr(new, name, parameter)
        return new

    @property
    def measured_shape(self) -> tuple[int, ...]:
        """The shape M of a measurement."""
        phi = self.draw(1, Generator().manual_seed(0))
        return tuple(self.apply(torch.zeros(1, *self.shape), phi).shape[1:])

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Draws φ of n samples, (n, *P); (n, 0) where the operator has none."""
        return torch.empty(n, 0, device=generator.device)

    def __str__(self) -> str:
        return type(self).__name__

    @abstractmethod
    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        """Returns A_φ x, (B, *M).

        Arguments:
            x: Images, (B, *shape).
            operator: φ of each, (B, *P).
        """

    @abstractmethod
    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        """Returns A_φᵀ y, (B, *shape), of measurements (B, *M)."""

    def measured_mask(self, y: Tensor, operator: Tensor) -> Tensor:
        """Returns 1 where y holds a measured entry and 0 where it holds none, (B, *M)."""
        return torch.ones_like(y)

    def leave_out(self, operator: Tensor, fraction: float, generator: Generator) -> Tensor | None:
        """Returns φ, (B, *P), under which a random part of what φ measures is not measured.

        Arguments:
            operator: φ of each sample, (B, *P).
            fraction: The probability of each entry to be left out, in (0, 1]; 1 leaves out all.
            generator: The source of all randomness, on the same device.

        Returns:
            φ of the rest; None if entries cannot be left out one by one.
        """
        return None

    def fault(self, operator: Tensor) -> str | None:
        """Returns what is wrong with φ that were recorded, (n, *P), as a sentence goes on.

        None, as here, if nothing is. Of φ that say how well something was measured, as a matrix
        does, every number is right.
        """
        return None

    def assume(self, operator: Tensor) -> Tensor:
        """Returns φ with the known parameters in place of the drawn ones, (B, *P)."""
        return operator

    def lift(self, y: Tensor, operator: Tensor) -> Tensor:
        """Brings y back on the grid of x, (B, *shape); by default by the adjoint."""
        return self.adjoint(y, operator)

    def spectrum(self, operator: Tensor) -> Spectrum | None:
        """Returns AᵀA = V diag(s²) Vᵀ for each sample, or None where it is not at hand."""
        return None

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        """Returns what the network should see of the operator, each (B, C', *S)."""
        return []


def thinned(operator: Tensor, fraction: float, generator: Generator) -> Tensor:
    """Returns masks, (B, *P), of whose entries each becomes 0 with a probability."""
    u = torch.rand(operator.shape, generator=generator, device=operator.device)
    return operator * (u >= fraction)


def must_be_among(operator: Tensor, allowed: Sequence[float], meaning: str) -> str | None:
    """Returns that φ must be some numbers, as a sentence goes on; None if each is one of them.

    Arguments:
        operator: φ of measurements, (n, *P).
        allowed: The numbers.
        meaning: What they mean.
    """
    known = torch.tensor(allowed, dtype=operator.dtype, device=operator.device)
    wrong = operator[~torch.isin(operator, known)]
    if not len(wrong):
        return None
    return (
        f"must be {', '.join(map(str, allowed[:-1]))} or {allowed[-1]}, {meaning}, and holds "
        f"{float(wrong[0]):g}; correct it"
    )


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Reshapes one value per sample, (B,), to broadcast against a batch, (B, *)."""
    return value.reshape(-1, *(1,) * (like.ndim - 1))


def constant_map(value: Tensor, like: Tensor) -> Tensor:
    """Spreads one value per sample, (B,), over the grid of a batch (B, C, *S): (B, 1, *S)."""
    return expand(value, like).expand(-1, 1, *like.shape[2:])
