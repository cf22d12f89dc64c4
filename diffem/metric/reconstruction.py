"""Quality of reconstructions: PSNR and SSIM against the truth, χ² against the measurement."""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from diffem.corruption import Channel, LinearChannel, Measurement

DATA_RANGE = 2.0  # images in [-1, 1]


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio of each image in dB, (B,), with data range 2.

    It is at most 106 dB, that of errors of 1e-5: equal images have no finite one.
    """
    mse = (x - truth).square().flatten(1).mean(dim=1).clamp(min=1e-10)
    return 10 * torch.log10(DATA_RANGE**2 / mse)


def ssim(x: Tensor, truth: Tensor) -> Tensor | None:
    """Returns the structural similarity of each image, (B,); None for signals and vectors.

    The Gaussian window has σ = 1.5 and 11 pixels (Wang et al. 2004), fewer where a side is less
    than 6; images are continued by reflection.
    """
    if x.ndim != 4 or min(x.shape[2:]) < 2:
        return None
    radius = min(5, min(x.shape[2:]) - 1)
    sigma = 1.5 if radius == 5 else radius / 3.5  # torchmetrics: radius = int(3.5 σ + 0.5)
    with torch.autocast(x.device.type, enabled=False):  # its windows are convolutions
        value = structural_similarity_index_measure(
            x, truth, sigma=sigma, data_range=DATA_RANGE, reduction="none"
        )
    assert isinstance(value, Tensor)
    return value


def scores(
    x: Tensor, truth: Tensor, channel: Channel, measurement: Measurement
) -> dict[str, Tensor]:
    """Returns PSNR (dB), SSIM (where it is defined) and χ² per measured entry, each (B,).

    Arguments:
        x: One reconstruction of each measurement, (B, *shape).
        truth: The clean images, (B, *shape).
        channel: The channel; one that is not linear has no χ².
        measurement: The measurements, (B, …).
    """
    similarity = ssim(x, truth)
    found = {"psnr": psnr(x, truth)}
    if isinstance(channel, LinearChannel):
        found["residual_chi2"] = channel.residual_chi2(measurement, x)
    if similarity is not None:
        found["ssim"] = similarity
    return found
