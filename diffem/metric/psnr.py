"""Peak signal-to-noise ratio against the clean image."""

import torch
from torch import Tensor

from diffem.corruption import Channel, Measurement
from diffem.metric.metric import Metric
from diffem.metric.score import Score

DATA_RANGE = 2.0  # images in [-1, 1]


class PSNR(Metric):
    """10 log₁₀(4 / mean((x̂ - x)²)) in dB, of a sample and of the mean of several samples."""

    score = Score("psnr", "PSNR", unit="dB", digits=2, better="higher")
    needs_truth = True
    of_mean = True

    def compute(
        self, x: Tensor, truth: Tensor, channel: Channel, measurement: Measurement
    ) -> Tensor:
        """Returns the PSNR of each reconstruction in dB, (B,)."""
        return psnr(x, truth)


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio of each image in dB, (B,), with data range 2.

    It is at most 106 dB, that of errors of 1e-5: equal images have no finite one.

    Arguments:
        x: Images, (B, *shape), in [-1, 1].
        truth: The clean images, (B, *shape).
    """
    mse = (x - truth).square().flatten(1).mean(dim=1).clamp(min=1e-10)
    return 10 * torch.log10(DATA_RANGE**2 / mse)
