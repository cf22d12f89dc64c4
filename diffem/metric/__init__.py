"""Metrics: with ground truth, and without."""

from diffem.metric.distribution import frechet_pixels
from diffem.metric.reconstruction import psnr, scores, ssim

__all__ = ["frechet_pixels", "psnr", "scores", "ssim"]
