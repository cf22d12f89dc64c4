"""Masked Fourier coefficients: A x = m ⊙ F x, as MRI measures them."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.fft import fftn, fftshift, ifftn, ifftshift

from diffem.corruption.basis import FourierBasis, HartleyBasis, as_channels, as_complex
from diffem.corruption.operator import LinearOperator, must_be_among, thinned
from diffem.corruption.spectrum import Spectrum
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


class Fourier(LinearOperator):
    """Measures the Fourier coefficients (k-space) of an image on some lines alone.

    F is orthonormal, with the lowest frequency and the image's origin in the middle, as scanners
    and fastMRI (arXiv 1811.08839) have it. Lines run along the axis before the last: those in the
    middle are always measured, the others each with the probability that measures 1/R of all in
    the mean. y holds the real and the imaginary part as two channels, 0 where nothing was
    measured. Noise of standard deviation σ_y is in each of the two.

    φ is the mask m, (1, 1, W); that of own measurements may be of points, (1, H, W), in place of
    lines (`kspace_mask`).

    Arguments:
        shape: The shape of x: (1, H, W) for real images, (2, H, W) for complex ones, whose
            channels are the real and the imaginary part.
        acceleration: R, the number of lines over the mean number of measured ones, >= 1.
        centre: The fraction of lines in the middle that is always measured, in [0, 1).

    Raises:
        UserError: If the shape is another, or the middle has more lines than are measured.
    """

    covers = True
    keeps_coefficients = True
    keeps_units = False

    def __init__(self, shape: Sequence[int], *, acceleration: float, centre: float = 0.0) -> None:
        super().__init__(shape)
        if len(self.shape) != 3 or self.shape[0] not in (1, 2):
            raise UserError(
                f"corruption={type(self).__name__.lower()} needs real images of shape (1, H, W), "
                f"or complex ones as (2, H, W), got {self.shape}; give other images"
            )
        self.acceleration = float(check("corruption.acceleration", acceleration))
        width = self.shape[-1]
        self.middle = round(check("corruption.centre", centre) * width)
        left = width / self.acceleration - self.middle
        if left < 0 or (left == 0 and self.middle < width):
            raise UserError(
                f"corruption.centre must be below 1 / corruption.acceleration = "
                f"{1 / self.acceleration:.3g}, so that other lines are measured too, got {centre}"
            )
        self.probability = left / max(1, width - self.middle)

    def draw(self, n: int, generator: Generator) -> Tensor:
        width = self.shape[-1]
        u = torch.rand(n, 1, 1, width, generator=generator, device=generator.device)
        mask = (u < self.probability).float()
        first = (width - self.middle + 1) // 2  # the lowest frequency is at width // 2
        mask[..., first : first + self.middle] = 1
        return mask

    def fault(self, operator: Tensor) -> str | None:
        return must_be_among(operator, (0, 1), "1 where a line was measured")

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        image = as_complex(x) if self.shape[0] == 2 else x[:, 0]
        return operator * as_channels(centred(image, fftn))

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        image = centred(as_complex(operator * y), ifftn)
        return as_channels(image) if self.shape[0] == 2 else image.real[:, None]

    def measured_mask(self, y: Tensor, operator: Tensor) -> Tensor:
        return operator.expand_as(y)

    def leave_out(self, operator: Tensor, fraction: float, generator: Generator) -> Tensor:
        return thinned(operator, fraction, generator)

    def spectrum(self, operator: Tensor) -> Spectrum | None:
        # Without the shift to the middle, which moves x on its periodic grid and AᵀA with it.
        square = ifftshift(operator, dim=(2, 3)).expand(-1, 1, *self.shape[1:])
        if self.shape[0] == 2:
            return Spectrum(FourierBasis((2, 3)), square)
        # Of a real image k and -k hold the same: each real wave is measured by both.
        mirrored = square.flip((2, 3)).roll((1, 1), (2, 3))
        return Spectrum(HartleyBasis((2, 3)), (square + mirrored) / 2)

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        return [operator.expand(-1, 1, *self.shape[1:])]


def kspace_mask(given: Tensor, size: Sequence[int]) -> Tensor | None:
    """Returns masks of k-space as φ of `Fourier`.

    Arguments:
        given: Masks of lines, (N, W) or (N, 1, W), or of points, (N, H, W); an axis of channels
            may stand after N, along which all are the same.
        size: (H, W).

    Returns:
        Masks of lines, (N, 1, 1, W), or of points, (N, 1, H, W); None if the shape is none of
        these, or channels differ.
    """
    mask = given[:, None, None] if given.ndim == 2 else given
    mask = mask[:, None] if mask.ndim == 3 else mask
    if mask.ndim != 4 or not (mask == mask[:, :1]).all():
        return None
    return mask[:, :1] if tuple(mask.shape[2:]) in ((1, size[1]), tuple(size)) else None


def centred(image: Tensor, transform: Callable[..., Tensor]) -> Tensor:
    """Returns an orthonormal transform with the origin of both sides in the middle."""
    dim = (-2, -1)
    return fftshift(transform(ifftshift(image, dim=dim), dim=dim, norm="ortho"), dim=dim)
