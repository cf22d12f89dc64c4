"""Phase retrieval: y = |F (M_l ⊙ (x + 1))| + noise, intensities behind known phase masks."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor
from torch.fft import fft2, ifft2

from diffem.corruption.array_file import read_array, shown_file
from diffem.corruption.channel import Channel, LinearChannel, Measurement, make_channel
from diffem.corruption.denoising import Denoising
from diffem.corruption.noise import GaussianNoise, Noise
from diffem.corruption.operator import constant_map
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check

ITERATIONS = 60  # of the retrieval: the same number always, since the network learns with it
REFINED = 18  # of them, the last, which only project
RELAXATION = 0.9  # β of the others
# Amplitudes that are hardly those of images in [-1, 1] with noise σ_y: a misfit of more than a
# fifth of them, and of twice the noise; less than half of the noise that is part of them; or next
# to nothing (1.5 % of the range) that is clear of noise.
MISFIT, OF_NOISE, DARK, CLEAR = 0.2, 2.0, 0.03, 3.0


class PhaseRetrieval(Channel):
    """The amplitudes of coded diffraction patterns: Candès, Li & Soltanolkotabi 2015, 1310.3240.

    An object of amplitude x + 1 in [0, 2] is seen through L masks M_l that shift the phase of
    each pixel, known and the same for all images; a detector sees the intensity of the Fourier
    transform F, which is orthonormal, with its lowest frequency at the first pixel. y is the
    square root of the intensity, (L C, H, W), with Gaussian noise, as counts of photons have it.

    An image is found from y by relaxed averaged alternating reflections (Luke 2005,
    math/0405208) between images that have these amplitudes and images in [-1, 1]. Amplitudes say
    half of what complex values would, so that what is found is about x with white noise of
    standard deviation σ_y √(2 / L), a measurement of the channel's `surrogate`. Where it does not
    fit y, its misfit takes the place of σ_y. From one mask most images are not found.

    Arguments:
        shape: The shape of x, (C, H, W), real images.
        masks: The number L of masks to simulate, of independent phases; or the path of a .npy
            file of phases in radians, (L, H, W).
        noise: The noise, Gaussian, σ_y on the scale of images in [-1, 1].

    Raises:
        UserError: If images or noise are of another kind, or the masks cannot be read.
    """

    def __init__(self, shape: Sequence[int], *, masks: str | int, noise: Noise) -> None:
        super().__init__(shape)
        if len(self.shape) != 3:
            raise UserError(
                "corruption=phase_retrieval needs images of shape (C, H, W), got "
                f"{list(self.shape)}; give other images"
            )
        if not isinstance(noise, GaussianNoise):
            raise UserError(
                f"corruption=phase_retrieval needs Gaussian noise, got {noise}; choose "
                "corruption/noise=gaussian"
            )
        self.noise = noise
        self._masks = phase_masks(masks, self.shape[1:])
        self._last: tuple[Measurement, Measurement] | None = None

    @property
    def surrogate(self) -> LinearChannel:
        """The image with white noise, as which `undistorted` gives a retrieved image."""
        factor = math.sqrt(2 / len(self._masks))
        return make_channel(Denoising(self.shape), self.noise.scaled(factor))

    def draw(self, x: Tensor, generator: Generator) -> Measurement:
        """Draws the noise's parameters and y, in this order."""
        noise = self.noise.draw_parameters(len(x), generator)
        y = self.noise.draw(self._transform(x).abs().flatten(1, 2), noise, generator)
        return Measurement(y, x.new_empty(len(x), 0), noise)

    def assume(self, measurement: Measurement) -> Measurement:
        """Returns the measurement with a known σ_y in place of the drawn one."""
        return measurement._replace(noise=self.noise.assume(measurement.noise))

    def embed(self, measurement: Measurement) -> Tensor:
        """Returns retrieved images and the standard deviation of their noise, (B, C + 1, H, W)."""
        image, _, std = self.undistorted(measurement)
        return torch.cat([image, constant_map(std[:, 0], image)], dim=1)

    def undistorted(self, measurement: Measurement) -> Measurement:
        """Returns retrieved images as measurements of `surrogate`."""
        # The embedding and the fusion ask for the same ones, one after the other.
        given, found = self._last or ((), None)
        if found is None or any(a is not b for a, b in zip(given, measurement, strict=True)):
            found = self._retrieve(measurement)
            self._last = measurement, found
        return found

    def doubt(self, measurement: Measurement) -> str | None:
        """Returns that amplitudes fit no images, or next to none of what images are; or None."""
        size = measurement.y.flatten(1).square().mean(dim=1).sqrt().clamp(min=1e-30)
        factor = math.sqrt(2 / len(self._masks))
        stated, found = measurement.noise[:, 0], self.undistorted(measurement).noise[:, 0] / factor
        misfit, ratio = float((found / size).median()), float((found / stated).median())
        typical, signal = float(size.median()), float((size / stated).median())
        if misfit > MISFIT and ratio > OF_NOISE:
            why = (
                f"retrieved images miss them by {100 * misfit:.0f} % of their size, {ratio:.2g} "
                "times corruption.noise.std"
            )
        elif signal < 1 / OF_NOISE or (typical < DARK and signal > CLEAR):
            why = f"their size is {typical:.2g}, {signal:.2g} times corruption.noise.std"
        else:
            return None
        few = "; from fewer than three masks images may also not be found"
        return (
            f"the amplitudes are hardly those of corruption=phase_retrieval: {why}; y must be "
            "square roots of intensities, in units in which a pixel at the upper end of "
            "dataset.range has 2, behind the masks of corruption.masks, with a noise of "
            f"corruption.noise.std{few if len(self._masks) < 3 else ''}"
        )

    def _retrieve(self, measurement: Measurement) -> Measurement:
        """Returns images, (B, C, H, W), with the standard deviation of their noise."""
        y = measurement.y.unflatten(1, (-1, len(self._masks)))
        amplitude = y.clamp(min=0)
        x = y.new_zeros(len(y), *self.shape)
        for iteration in range(ITERATIONS):
            found = self._nearest(x, amplitude)
            if iteration < ITERATIONS - REFINED:
                reflected = 2 * found - x
                step = reflected.clamp(-1, 1) + (x - reflected) / 2
                x = RELAXATION * step + (1 - RELAXATION) * found
            else:
                x = found.clamp(-1, 1)
        misfit = (self._transform(x).abs() - y).flatten(1).square().mean(dim=1).sqrt()
        std = math.sqrt(2 / len(self._masks)) * torch.maximum(measurement.noise[:, 0], misfit)
        return Measurement(self._nearest(x, amplitude), measurement.operator, std[:, None])

    def _nearest(self, x: Tensor, amplitude: Tensor) -> Tensor:
        """Returns the images whose transforms come nearest to those of x with other amplitudes."""
        u = torch.polar(amplitude, self._transform(x).angle())
        return (ifft2(u, norm="ortho") * self._phases(x).conj()).real.mean(dim=2) - 1

    def _transform(self, x: Tensor) -> Tensor:
        """Returns F (M_l ⊙ (x + 1)), (B, C, L, H, W), complex."""
        return fft2((x + 1)[:, :, None] * self._phases(x), norm="ortho")

    def _phases(self, like: Tensor) -> Tensor:
        """Returns M, (L, H, W), on the device and in the precision of real numbers."""
        phase = self._masks.to(like.device, like.dtype)
        return torch.polar(torch.ones_like(phase), phase)


def phase_masks(masks: str | int, size: Sequence[int]) -> Tensor:
    """Returns phases in radians, (L, H, W), float64.

    Arguments:
        masks: The number L of masks to simulate; or the path of a .npy file of them.
        size: (H, W).

    Raises:
        UserError: If it is neither, or the masks are of another shape, complex, or not finite.
    """
    if not isinstance(masks, str):
        count = int(check("corruption.masks", masks))
        generator = torch.Generator().manual_seed(0)
        turns = torch.rand(count, *size, generator=generator, dtype=torch.float64)
        return 2 * math.pi * turns
    values = read_array("masks", masks)
    fits = values.ndim == 3 and values.shape[1:] == tuple(size) and len(values) > 0
    if not fits or np.iscomplexobj(values) or not np.isfinite(values).all():
        raise UserError(
            f"{shown_file('masks', masks)} must hold finite phases in radians, of shape "
            f"(L, {size[0]}, {size[1]}), got {values.dtype} of shape {list(values.shape)}; "
            "correct the file"
        )
    return torch.from_numpy(values)
