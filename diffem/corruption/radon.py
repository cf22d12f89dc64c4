"""Projections along parallel rays: A x = (∫ x along the rays at angle θ_k)_k, as of tomography."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.fft import fftfreq, irfft, rfft

from diffem.corruption.operator import LinearOperator, full_precision
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import RANGES, check


class Radon(LinearOperator):
    """Measures line integrals of an image, in units of its values times pixels, at some angles.

    y has a row for each angle and a bin for each ray, (C, K, D): D, an odd number, is the length
    of the diagonal, rays are a pixel apart, and that in the middle goes through the image's
    centre. At 0° rays are columns, so that y is the sum of the rows; the angle is that by which
    the image is turned counterclockwise before, as of scikit-image's radon. By the Fourier slice
    theorem (Bracewell 1956) a projection is the inverse transform of the image's spectrum along a
    line through the origin, of point-like pixels here: A and Aᵀ are exact transposes.

    φ are the angles in degrees, (K,): NaN for a projection that was not taken.

    Arguments:
        shape: The shape of x, (C, H, W).
        angles: K, the number of projections, 180° / K apart, of which the first is drawn for each
            image; or their angles in degrees, the same for all.

    Raises:
        UserError: If x is no image, or a number out of its range.
    """

    keeps_units = False
    holds_nan = True

    def __init__(self, shape: Sequence[int], *, angles: int | Sequence[float]) -> None:
        super().__init__(shape)
        if len(self.shape) != 3:
            raise UserError(
                f"corruption=radon needs images of shape (C, H, W), got {self.shape}; give "
                "other data"
            )
        self.given: Tensor | None = None
        if isinstance(angles, Sequence) and not isinstance(angles, str) and len(angles):
            check("corruption.angles@degrees", angles)
            self.given = torch.tensor([float(angle) for angle in angles])
            angles = len(angles)
        self.count: int = check("corruption.angles", angles)  # type: ignore[assignment]
        self.covers = self.given is None
        self.bins = math.ceil(math.hypot(*self.shape[1:])) // 2 * 2 + 1

    def draw(self, n: int, generator: Generator) -> Tensor:
        if self.given is not None:
            return self.given.to(generator.device).expand(n, -1)
        first = torch.rand(n, 1, generator=generator, device=generator.device)
        step = torch.arange(self.count, device=generator.device)
        return (first + step) * (180 / self.count)

    def fault(self, operator: Tensor) -> str | None:
        if self.given is not None and not torch.allclose(operator.float(), self.given):
            return (
                "has other angles than corruption.angles, which are the same for all; give "
                f"corruption.angles={self.count}, or leave `operator` out"
            )
        low, high = RANGES["corruption.angles@degrees"][:2]
        wrong = operator[(operator < low) | (operator > high)]
        if not len(wrong):
            return None
        return f"must be degrees in [{low}, {high}], and holds {float(wrong[0]):g}; correct it"

    @full_precision
    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        across, down = self._waves(operator, x)
        x = x.to(across.dtype)
        slices = torch.einsum("bchw,bkfw,bkfh->bckf", x, across, down)
        y = irfft(slices, n=self.bins).roll(self.bins // 2, dims=-1)
        return y * self.measured_mask(y, operator)

    @full_precision
    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        return self._back(y, operator, torch.ones_like(self._frequency(y)))

    @full_precision
    def lift(self, y: Tensor, operator: Tensor) -> Tensor:
        """Returns the filtered back-projection of y (Kak & Slaney 1988, section 3.3)."""
        frequency = self._frequency(y)
        # Of the lowest bin the mean of the ramp, without which the image's mean would be lost.
        ramp = frequency.clamp(min=math.pi / (2 * self.bins))
        taken = (~operator.isnan()).sum(dim=1).clamp(min=1)
        return self._back(y, operator, ramp) / (2 * taken.to(y.dtype)[:, None, None, None])

    def measured_mask(self, y: Tensor, operator: Tensor) -> Tensor:
        return (~operator.isnan())[:, None, :, None].to(y.dtype).expand_as(y)

    def leave_out(self, operator: Tensor, fraction: float, generator: Generator) -> Tensor:
        u = torch.rand(operator.shape, generator=generator, device=operator.device)
        return operator.masked_fill(u < fraction, math.nan)

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        """Returns AᵀA δ of the middle pixel, 1 there: a star with a ray at each angle."""
        if self.given is not None:
            return []
        point = y.new_zeros(len(y), 1, *self.shape[1:])
        point[:, :, self.shape[1] // 2, self.shape[2] // 2] = 1
        return [self.adjoint(self.apply(point, operator), operator) / self.count]

    def _frequency(self, like: Tensor) -> Tensor:
        """Returns the frequencies of a projection in radians a bin, from 0 on, (F,)."""
        half = fftfreq(self.bins, dtype=like.dtype, device=like.device)[: self.bins // 2 + 1]
        return 2 * math.pi * half

    def _waves(self, operator: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns exp(-i ω s) of the frequencies ω at each angle along both axes of the image.

        Returns:
            Those of s = u cos θ, (B, K, F, W), and of s = -v sin θ, (B, K, F, H), with the places
            (v, u) of pixels from the centre.
        """
        height, width = self.shape[1:]
        theta = operator.nan_to_num().to(like.dtype).deg2rad()[..., None, None]
        wave = self._frequency(like)[:, None]
        v, u = (
            torch.arange(side, dtype=like.dtype, device=like.device) - (side - 1) / 2
            for side in (height, width)
        )
        one = torch.ones((), dtype=like.dtype, device=like.device)
        return (
            torch.polar(one, -wave * theta.cos() * u),
            torch.polar(one, wave * theta.sin() * v),
        )

    def _back(self, y: Tensor, operator: Tensor, gain: Tensor) -> Tensor:
        """Returns the back-projection of projections whose frequencies are multiplied, (B, *S)."""
        across, down = self._waves(operator, y)
        y = (y * self.measured_mask(y, operator)).roll(-(self.bins // 2), dims=-1)
        gain = gain * torch.where(self._frequency(y) > 0, 2, 1) / self.bins  # ω and -ω
        slices = rfft(y) * gain
        return torch.einsum("bckf,bkfw,bkfh->bchw", slices, across.conj(), down.conj()).real
