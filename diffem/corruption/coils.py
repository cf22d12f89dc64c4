"""Coils of a magnetic resonance scanner: the sensitivity maps S_c of their receivers."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffem.corruption.array_file import read_array, shown_file
from diffem.corruption.fourier import kspace_mask
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check

RADIUS = 1.5  # of the ring of simulated coils, in half sides of the image
DARK = 1e-3  # of the largest sensitivity: what is below is no signal


def sensitivity_maps(coils: str | int, size: Sequence[int]) -> Tensor:
    """Returns complex maps S_c with Σ_c |S_c|² = 1, or 0 where there is no signal, (C, H, W).

    Arguments:
        coils: The path of a .npy file of complex maps, (C, H, W), or of their real and imaginary
            parts, (C, 2, H, W); or the number of coils to simulate.
        size: (H, W).

    Raises:
        UserError: If it is neither, or the maps are of another shape, not finite, or all zero.
    """
    if not isinstance(coils, str):
        return _unit(simulated_maps(check("corruption.coils", coils), size))
    values, shown = read_array("coils", coils), shown_file("coils", coils)
    if values.ndim == 4 and values.shape[1] == 2:
        values = values[:, 0] + 1j * values[:, 1]
    if values.ndim != 3 or values.shape[1:] != tuple(size) or not np.isfinite(values).all():
        raise UserError(
            f"{shown} must hold finite maps of shape (C, {size[0]}, {size[1]}), complex or "
            f"with an axis of two parts after C, got {list(values.shape)}; correct the file"
        )
    if not values.any():
        raise UserError(f"{shown} must have a value other than 0; give other maps")
    return _unit(torch.from_numpy(values).to(torch.complex128))


def simulated_maps(count: int, size: Sequence[int]) -> Tensor:
    """Returns the maps of coils on a ring around the image, (C, H, W), of arbitrary scale.

    The fall-off 1 / r and the phase of each are those of the simulated birdcage coil of the
    libraries BART and SigPy.

    Arguments:
        count: C.
        size: (H, W).
    """
    row, column = ((2 * torch.arange(side, dtype=torch.float64) - side) / side for side in size)
    angle = 2 * math.pi * torch.arange(count, dtype=torch.float64)[:, None, None] / count
    x, y = column - RADIUS * angle.cos(), row[:, None] - RADIUS * angle.sin()
    return torch.polar(1 / torch.hypot(x, y), torch.atan2(x, -y) + angle)


def estimate_coils(kspace: np.ndarray, operator: np.ndarray) -> np.ndarray:
    """Estimates sensitivity maps from what all measurements have of the middle of k-space.

    The lines in the middle give low-resolution images g_ci = S_c x_i of each coil (McKenzie et
    al. 2002). At each pixel S is the first eigenvector of the coils' correlation, Σ_i g_i g_iᴴ
    (Walsh, Gmitro, Marcellin 2000, who sum over neighbours what is here summed over
    measurements): the coil images over their root sum of squares, whatever the phase of x_i. Its
    phase is set to that of the one combination of coils that has the most energy, as ESPIRiT's is
    (Uecker et al. 2014), so that images have their phase relative to it. One set of maps is
    estimated: all measurements must be of one set-up. The more lines there are, the closer it is:
    of few, the edges of images show in the maps.

    Arguments:
        kspace: Complex k-space, (N, C, H, W), its lowest frequency in the middle.
        operator: 1 for what was measured and 0 for the rest: of each line, (N, W), or of each
            point, (N, H, W).

    Returns:
        Maps of root sum of squares 1, (C, H, W), complex64: `corruption.coils` takes the file that
        numpy.save writes of them.

    Raises:
        UserError: If an array has another form, or fewer than 3 lines in the middle are
            measured by all.
    """
    kspace, operator = np.asarray(kspace), np.asarray(operator)
    if kspace.ndim != 4 or kspace.dtype.kind != "c" or not np.isfinite(kspace).all():
        raise UserError(
            "kspace must be finite complex numbers of shape (N, C, H, W), got "
            f"{kspace.dtype} of shape {list(kspace.shape)}; convert it"
        )
    n, _, height, width = kspace.shape
    mask = kspace_mask(torch.from_numpy(operator != 0), (height, width))
    if mask is None or len(mask) != n:
        raise UserError(
            f"operator must have the shape {[n, width]} or {[n, height, width]}, got "
            f"{list(operator.shape)}; give 0 or 1 for each line, or for each point"
        )
    always = mask.flatten(0, 2).all(dim=0).numpy()
    first = last = width // 2
    while first > 0 and always[first - 1]:
        first -= 1
    while last < width - 1 and always[last + 1]:
        last += 1
    if not always[width // 2] or last - first < 2:
        raise UserError(
            "at least 3 lines in the middle of k-space must be measured by all measurements, "
            f"from which coils are estimated, got {always[first : last + 1].sum()}; give maps, or "
            "other measurements"
        )
    y = torch.zeros(kspace.shape, dtype=torch.complex128)
    y[..., first : last + 1] = torch.from_numpy(kspace[..., first : last + 1])
    image = torch.fft.ifft2(torch.fft.ifftshift(y, dim=(-2, -1)), norm="ortho")
    image = torch.fft.fftshift(image, dim=(-2, -1))
    correlation = torch.einsum("nchw,ndhw->hwcd", image, image.conj())
    maps = torch.linalg.eigh(correlation).eigenvectors[..., -1]  # (H, W, C), of norm 1
    reference = torch.linalg.eigh(correlation.sum(dim=(0, 1))).eigenvectors[:, -1]
    maps = maps * torch.sgn(maps @ reference.conj()).conj()[..., None]
    return maps.permute(2, 0, 1).to(torch.complex64).contiguous().numpy()


def _unit(maps: Tensor) -> Tensor:
    """Returns maps over their root sum of squares, and 0 where there is no signal."""
    maps = maps / maps.abs().max()  # whose squares neither vanish nor overflow
    norm = maps.abs().square().sum(dim=0).sqrt()
    return torch.where(norm > DARK * norm.max(), maps / norm.clamp(min=1e-300), 0)
