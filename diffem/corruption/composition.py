"""Composition of operators: A x = A_n … A_2 A_1 x."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from diffem.corruption.operator import LinearOperator


class Composition(LinearOperator):
    """Several operators, one after another. Its spectrum is not at hand.

    φ is that of all operators, flattened and side by side.

    Arguments:
        operators: A_1 to A_n; each takes what the one before it returns.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        super().__init__(operators[0].shape)
        self.operators = tuple(operators)
        self.preserves_intensity = all(each.preserves_intensity for each in operators)
        self.keeps_units = all(each.keeps_units for each in operators)
        # What is not taken of the last one's measurement is not taken of all of them.
        self.holds_nan = self.operators[-1].holds_nan
        self._shapes = [
            each.draw(1, Generator().manual_seed(0)).shape[1:] for each in self.operators
        ]
        for before, after in pairwise(self.operators):
            assert after.shape == before.measured_shape, f"{after} cannot follow {before}"

    def __str__(self) -> str:
        return " then ".join(str(each) for each in self.operators)

    def draw(self, n: int, generator: Generator) -> Tensor:
        return torch.cat([each.draw(n, generator).flatten(1) for each in self.operators], dim=1)

    def assume(self, operator: Tensor) -> Tensor:
        parts = zip(self.operators, self._split(operator), strict=True)
        return torch.cat([each.assume(phi).flatten(1) for each, phi in parts], dim=1)

    def fault(self, operator: Tensor) -> str | None:
        *before, last = zip(self.operators, self._split(operator), strict=True)
        if any(phi.isnan().any() for _, phi in before):
            return f"holds NaN where {last[0]} has none of its parameters; correct it"
        parts = (*before, last)
        return next((found for each, phi in parts if (found := each.fault(phi))), None)

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        for each, phi in zip(self.operators, self._split(operator), strict=True):
            x = each.apply(x, phi)
        return x

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        for each, phi in reversed(list(zip(self.operators, self._split(operator), strict=True))):
            y = each.adjoint(y, phi)
        return y

    def measured_mask(self, y: Tensor, operator: Tensor) -> Tensor:
        return self.operators[-1].measured_mask(y, self._split(operator)[-1])

    def lift(self, y: Tensor, operator: Tensor) -> Tensor:
        for each, phi in reversed(list(zip(self.operators, self._split(operator), strict=True))):
            y = each.lift(y, phi)
        return y

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        found = []
        for each, phi in reversed(list(zip(self.operators, self._split(operator), strict=True))):
            found += each.maps(y, phi)
            y = each.lift(y, phi)
        # Those of the later operators may be on a coarser grid than x.
        size = self.shape[1:]
        return [m if m.shape[2:] == size else interpolate(m, size=size) for m in found]

    def _split(self, operator: Tensor) -> list[Tensor]:
        """Returns φ of each operator."""
        sizes = [shape.numel() for shape in self._shapes]
        parts = operator.split(sizes, dim=1)
        return [p.reshape(len(p), *s) for p, s in zip(parts, self._shapes, strict=True)]
