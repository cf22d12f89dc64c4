"""Random projection: A of random unit rows, for vectors."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.corruption.operator import LinearOperator, full_precision
from diffem.corruption.spectrum import Spectrum
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


class Projection(LinearOperator):
    """Measures a vector along directions that are uniform on the sphere, new for each sample.

    Arguments:
        shape: The shape of x, (D,).
        rows: The number of directions, in [1, D].

    Raises:
        UserError: If x is not a vector or rows is outside [1, D].
    """

    covers = True

    def __init__(self, shape: Sequence[int], *, rows: int) -> None:
        super().__init__(shape)
        if len(self.shape) != 1:
            raise UserError(
                f"corruption=projection needs vectors of shape (D,), got {self.shape}; "
                "use dataset=manifold, or another corruption for images"
            )
        if check("corruption.rows", rows) > self.shape[0]:
            raise UserError(f"corruption.rows must be in [1, {self.shape[0]}], got {rows}")
        self.rows = rows

    def draw(self, n: int, generator: Generator) -> Tensor:
        size = (n, self.rows, *self.shape)
        a = torch.randn(size, generator=generator, device=generator.device)
        return a / a.norm(dim=-1, keepdim=True)

    @full_precision
    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        return torch.einsum("bmd,bd->bm", operator.to(x.dtype), x)

    @full_precision
    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return torch.einsum("bmd,bm->bd", operator.to(y.dtype), y)

    @full_precision
    def spectrum(self, operator: Tensor) -> Spectrum:
        square, v = torch.linalg.eigh(operator.mT @ operator)
        return Spectrum(((1, v),), square.clamp(min=0))

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        return [y, operator.flatten(1)]
