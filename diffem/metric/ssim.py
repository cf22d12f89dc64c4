"""Structural similarity to the clean image (Wang et al. 2004)."""

import torch
from torch import Tensor

from diffem.corruption import Channel, Measurement
from diffem.metric.metric import Metric
from diffem.metric.psnr import DATA_RANGE
from diffem.metric.score import Score


class SSIM(Metric):
    """Structural similarity of images of at least 2 × 2 pixels, in [-1, 1]."""

    score = Score("ssim", "SSIM", better="higher")
    needs_truth = True
    needs_images = True

    def compute(
        self, x: Tensor, truth: Tensor, channel: Channel, measurement: Measurement
    ) -> Tensor:
        """Returns the structural similarity of each reconstruction, (B,)."""
        return ssim(x, truth)

    def obstacle(self, channel: Channel, *, truth: bool = True) -> str | None:
        """Returns why the metric cannot be computed; None if it can be."""
        if len(channel.shape) == 3 and min(channel.shape[1:]) < 2:
            return f"needs images of at least 2 × 2 pixels, got the shape {list(channel.shape)}"
        return super().obstacle(channel, truth=truth)


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Returns the structural similarity of each image, (B,).

    The Gaussian window has σ = 1.5 and 11 × 11 pixels (Wang et al. 2004), and fewer pixels if a
    side of the images is below 6; images are continued by reflection.

    Arguments:
        x: Images, (B, C, H, W), in [-1, 1]; H and W at least 2.
        truth: The clean images, (B, C, H, W).
    """
    # Takes seconds to import.
    from torchmetrics.functional.image import structural_similarity_index_measure

    radius = min(5, min(x.shape[2:]) - 1)
    sigma = 1.5 if radius == 5 else radius / 3.5  # torchmetrics: radius = int(3.5 σ + 0.5)
    with torch.autocast(x.device.type, enabled=False):  # its windows are convolutions
        value = structural_similarity_index_measure(
            x, truth, sigma=sigma, data_range=DATA_RANGE, reduction="none"
        )
    assert isinstance(value, Tensor)
    return value
