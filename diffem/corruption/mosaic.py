"""Mosaic: A x = m ⊙ x, each pixel seen through one colour filter."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.corruption.basis import ENTRIES
from diffem.corruption.operator import LinearOperator, must_be_among
from diffem.corruption.spectrum import Spectrum
from diffem.runtime.errors import UserError

PATTERN = (0, 1, 1, 2)  # R G / G B, Bayer 1976


class Mosaic(LinearOperator):
    """A colour camera's Bayer filter, which measures one channel of each pixel.

    Crops of a camera's images begin anywhere in the pattern: each sample has one of its four
    offsets, so that every channel of every pixel is measured in some of them.

    Arguments:
        shape: The shape of x, (3, H, W).

    Raises:
        UserError: If the images have not three channels.
    """

    preserves_intensity = True  # where it measures anything
    covers = True
    keeps_coefficients = True

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        if len(self.shape) != 3 or self.shape[0] != 3:
            raise UserError(
                f"corruption=mosaic needs colour images of shape (3, H, W), got {self.shape}; use "
                "corruption=mask for others"
            )

    def draw(self, n: int, generator: Generator) -> Tensor:
        return torch.randint(4, (n, 1), generator=generator, device=generator.device).float()

    def fault(self, operator: Tensor) -> str | None:
        return must_be_among(operator, (0, 1, 2, 3), "the offset of the pattern")

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        return self._mask(operator).to(x.dtype) * x

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return self._mask(operator).to(y.dtype) * y

    def measured_mask(self, y: Tensor, operator: Tensor) -> Tensor:
        return self._mask(operator).to(y.dtype)

    def spectrum(self, operator: Tensor) -> Spectrum:
        return Spectrum(ENTRIES, self._mask(operator))

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        return [self._mask(operator)]

    def _mask(self, operator: Tensor) -> Tensor:
        """Returns 1 where a channel of a pixel is measured, (B, 3, H, W)."""
        offset = operator[:, 0].long()
        row = torch.arange(self.shape[1], device=operator.device) + offset[:, None] // 2
        column = torch.arange(self.shape[2], device=operator.device) + offset[:, None] % 2
        place = 2 * (row % 2)[:, :, None] + (column % 2)[:, None, :]
        colour = torch.tensor(PATTERN, device=operator.device)[place]
        channel = torch.arange(3, device=operator.device)[:, None, None]
        return (colour[:, None] == channel).to(operator.dtype)
