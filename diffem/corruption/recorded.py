"""Recorded operators: φ is drawn from those of the measurements, where its law is not known."""

from typing import Protocol

from torch import Generator, Tensor, randint

from diffem.corruption.operator import LinearOperator
from diffem.corruption.spectrum import Spectrum


class Records(Protocol):
    """φ of the measurements: a tensor (N, *P) on the CPU, or what reads the rows asked for."""

    def __len__(self) -> int:
        """Returns N."""
        ...

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Returns φ of rows, (n, *P), on the CPU; rows are whole numbers, (n,)."""
        ...


class Recorded(LinearOperator):
    """An operator whose parameters are drawn, with replacement, from those that were recorded.

    Arguments:
        operator: The operator A_φ.
        recorded: φ of the measurements, (N, *P).
    """

    def __init__(self, operator: LinearOperator, recorded: Records) -> None:
        super().__init__(operator.shape)
        self.operator = operator
        self.recorded = recorded
        self.preserves_intensity = operator.preserves_intensity
        self.keeps_units = operator.keeps_units
        self.holds_nan = operator.holds_nan
        self.pixelwise = operator.pixelwise
        self.covers = None if operator.covers else False

    def __str__(self) -> str:
        return f"recorded {self.operator}"

    def draw(self, n: int, generator: Generator) -> Tensor:
        rows = randint(len(self.recorded), (n,), generator=generator, device=generator.device)
        return self.recorded[rows.cpu()].to(generator.device)

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        return self.operator.apply(x, operator)

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return self.operator.adjoint(y, operator)

    def fault(self, operator: Tensor) -> str | None:
        return self.operator.fault(operator)

    def measured_mask(self, y: Tensor, operator: Tensor) -> Tensor:
        return self.operator.measured_mask(y, operator)

    def leave_out(self, operator: Tensor, fraction: float, generator: Generator) -> Tensor | None:
        return self.operator.leave_out(operator, fraction, generator)

    def lift(self, y: Tensor, operator: Tensor) -> Tensor:
        return self.operator.lift(y, operator)

    def spectrum(self, operator: Tensor) -> Spectrum | None:
        return self.operator.spectrum(operator)

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        return self.operator.maps(y, operator)
