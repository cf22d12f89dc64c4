"""Random projection: A of random unit rows, for vectors."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from diffem.corruption.basis import MatrixBasis
from diffem.corruption.operator import LinearOperator, full_precision
from diffem.corruption.spectrum import Spectrum
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check

TINY = torch.finfo(torch.float32).tiny


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
        """Returns the spectrum, in ascending order; in closed form of one or two rows."""
        if operator.shape[1] <= 2 and operator.shape[1] < operator.shape[2]:
            square, v = eigh_of_few_rows(operator)
        else:
            square, v = torch.linalg.eigh(operator.mT @ operator)
        return Spectrum(MatrixBasis(((1, v),)), square.clamp(min=0))

    @full_precision
    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        """Returns AᵀA, (B, D (D + 1) / 2), which with Aᵀy is all that p(x | y) depends on.

        A and y say the same, but in any order of the rows and with any signs, which a network has
        to learn. They are returned, (B, M) and (B, M D), where AᵀA has more than twice as many
        entries.
        """
        m, d = operator.shape[1:]
        if d > 4 * m:
            return [y, operator.flatten(1)]
        i, j = torch.triu_indices(d, d, device=operator.device)
        return [(operator.mT @ operator)[:, i, j]]


def eigh_of_few_rows(a: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the eigenvalues of AᵀA, (B, D), ascending, and its eigenvectors, (B, D, D).

    torch.linalg.eigh decomposes small matrices one after the other. With Aᵀ = Q R by reflections
    of Householder, AᵀA = Q (R Rᵀ) Qᵀ, and R Rᵀ is zero but for its first M rows and columns; where
    these are two, Jacobi's rotation makes it diagonal. No step divides by a singular value.

    Arguments:
        a: Matrices, (B, M, D), of M = 1 or 2 rows, M < D.
    """
    m, d = a.shape[1:]
    a = a.permute(1, 2, 0).contiguous()  # (M, D, B): the batch last, for vector instructions
    q = torch.eye(d, dtype=a.dtype, device=a.device)[..., None]
    for j in range(m):
        x = a[j, j:]  # is mapped on a multiple of the first unit vector
        head = x[:1] + x.norm(dim=0, keepdim=True).copysign(x[:1])
        w = nn.functional.normalize(torch.cat([head, x[1:]]), dim=0, eps=TINY)
        w = torch.cat([torch.zeros_like(a[0, :j]), w])
        a = a - 2 * (a * w).sum(dim=1, keepdim=True) * w
        q = q - 2 * (q * w).sum(dim=1, keepdim=True) * w
    zeros = torch.zeros_like(a[0, : d - m])
    if m == 1:
        square, v = torch.cat([zeros, a[0, :1].square()]), q.roll(-1, dims=1)
        return square.T, v.permute(2, 0, 1)
    # R Rᵀ = [[p, o], [o, r]], where the rows of A are now those of Rᵀ.
    p, o, r = a[0, 0].square() + a[1, 0].square(), a[1, 0] * a[1, 1], a[1, 1].square()
    mean, half, angle = (p + r) / 2, torch.hypot((p - r) / 2, o), torch.atan2(2 * o, p - r) / 2
    c, s = angle.cos(), angle.sin()  # the eigenvector of the larger value
    rotated = torch.stack([c * q[:, 1] - s * q[:, 0], c * q[:, 0] + s * q[:, 1]], dim=1)
    square = torch.cat([zeros, (mean - half)[None], (mean + half)[None]])
    return square.T, torch.cat([q[:, 2:], rotated], dim=1).permute(2, 0, 1)
