"""Metrics: with ground truth, and without."""

from diffem.metric.classifier import Classifier
from diffem.metric.dinov2 import DINOv2
from diffem.metric.distribution import distribution_scores, frechet, frechet_pixels
from diffem.metric.diversity import diversity, effective_rank, spread, variety
from diffem.metric.features import Extractor, PixelFeatures
from diffem.metric.inception import Inception
from diffem.metric.lpips import LPIPS
from diffem.metric.reconstruction import psnr, scores, ssim
from diffem.metric.sinkhorn import sinkhorn_divergence
from diffem.metric.sizes import Sizes

__all__ = [
    "LPIPS",
    "Classifier",
    "DINOv2",
    "Extractor",
    "Inception",
    "PixelFeatures",
    "Sizes",
    "distribution_scores",
    "diversity",
    "effective_rank",
    "frechet",
    "frechet_pixels",
    "psnr",
    "scores",
    "sinkhorn_divergence",
    "spread",
    "ssim",
    "variety",
]
