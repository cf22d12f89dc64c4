"""Recorded operators: φ is drawn from those of the measurements, where its law is not known."""

from torch import Generator, Tensor, randint

from diffem.corruption.operator import LinearOperator
from diffem.corruption.spectrum import Spectrum


class Recorded(LinearOperator):
    """An operator whose parameters are drawn, with replacement, from those that were recorded.

    Arguments:
        operator: The operator A_φ.
        recorded: φ of the measurements, (N, *P), on the CPU.
    """

    def __init__(self, operator: LinearOperator, recorded: Tensor) -> None:
        super().__init__(operator.shape)
        self.operator = operator
        self.recorded = recorded
        self.preserves_intensity = operator.preserves_intensity

    def draw(self, n: int, generator: Generator) -> Tensor:
        rows = randint(len(self.recorded), (n,), generator=generator, device=generator.device)
        return self.recorded[rows.cpu()].to(generator.device)

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        return self.operator.apply(x, operator)

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return self.operator.adjoint(y, operator)

    def measured_mask(self, y: Tensor, operator: Tensor) -> Tensor:
        return self.operator.measured_mask(y, operator)

    def lift(self, y: Tensor, operator: Tensor) -> Tensor:
        return self.operator.lift(y, operator)

    def spectrum(self, operator: Tensor) -> Spectrum | None:
        return self.operator.spectrum(operator)

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        return self.operator.maps(y, operator)
