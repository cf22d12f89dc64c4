"""Masked Fourier coefficients of several coils: A x = (m ⊙ F (S_c ⊙ x))_c."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fft import fftn, ifftn

from diffem.corruption.basis import as_channels, as_complex
from diffem.corruption.coils import sensitivity_maps
from diffem.corruption.fourier import Fourier, centred


class MultiCoil(Fourier):
    """Measures k-space lines of an image by coils that see it with sensitivities S_c of their own.

    y holds the real parts of all C coils and then the imaginary ones, (2 C, H, W). F, the lines
    and the noise, independent and of one σ_y in all coils, are those of `Fourier`; whiten
    measurements whose coils' noise is correlated. AᵀA has no basis at hand.

    Arguments:
        shape: The shape of x: (2, H, W) for complex images, whose channels are the real and the
            imaginary part; (1, H, W) for real ones.
        coils: The sensitivity maps, the same for all images: the path of a .npy file of complex
            ones, (C, H, W), or of their real and imaginary parts, (C, 2, H, W), which are divided
            by their root sum of squares; or the number of coils to simulate.
        acceleration: R, as of `Fourier`.
        centre: As of `Fourier`.

    Raises:
        UserError: If the maps cannot be read, or do not fit the images.
    """

    keeps_coefficients = False

    def __init__(
        self,
        shape: Sequence[int],
        *,
        coils: str | int,
        acceleration: float,
        centre: float = 0.0,
    ) -> None:
        super().__init__(shape, acceleration=acceleration, centre=centre)
        self._maps = self._copy = sensitivity_maps(coils, self.shape[1:])
        self.covers = bool((self._maps != 0).any(dim=0).all())

    def _coils(self, like: Tensor) -> Tensor:
        """Returns S, (C, H, W), on the device and in the precision of real numbers."""
        dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
        if (self._copy.device, self._copy.dtype) != (like.device, dtype):  # not at every step
            self._copy = self._maps.to(like.device, dtype)
        return self._copy

    def apply(self, x: Tensor, operator: Tensor) -> Tensor:
        image = as_complex(x)[:, None] if self.shape[0] == 2 else x
        y = centred(self._coils(x) * image, fftn)
        return operator * torch.cat([y.real, y.imag], dim=1)

    def adjoint(self, y: Tensor, operator: Tensor) -> Tensor:
        image = centred(torch.complex(*(operator * y).chunk(2, dim=1)), ifftn)
        x = (self._coils(y).conj() * image).sum(dim=1)
        return as_channels(x) if self.shape[0] == 2 else x.real[:, None]

    def spectrum(self, operator: Tensor) -> None:
        return None
