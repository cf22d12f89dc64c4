"""Metrics: with ground truth, and without."""

from diffem.metric.distribution import frechet_pixels
from diffem.metric.reconstruction import psnr, scores, ssim
from diffem.metric.sinkhorn import sinkhorn_divergence
from diffem.metric.sizes import Sizes

__all__ = ["Sizes", "frechet_pixels", "psnr", "scores", "sinkhorn_divergence", "ssim"]
