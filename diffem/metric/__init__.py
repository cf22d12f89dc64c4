"""Metrics: with ground truth, and without."""

from diffem.metric.classifier import Classifier
from diffem.metric.dinov2 import DINOv2
from diffem.metric.distribution import distribution_scores, frechet, frechet_pixels
from diffem.metric.diversity import diversity, effective_rank, spread, variety
from diffem.metric.energy import energy_distance
from diffem.metric.evaluation import Evaluation
from diffem.metric.features import Extractor, PixelFeatures
from diffem.metric.inception import Inception
from diffem.metric.lpips import LPIPS
from diffem.metric.reconstruction import psnr, scores, ssim
from diffem.metric.sinkhorn import sinkhorn_divergence

__all__ = [
    "LPIPS",
    "Classifier",
    "DINOv2",
    "Evaluation",
    "Extractor",
    "Inception",
    "PixelFeatures",
    "distribution_scores",
    "diversity",
    "effective_rank",
    "energy_distance",
    "frechet",
    "frechet_pixels",
    "psnr",
    "scores",
    "sinkhorn_divergence",
    "spread",
    "ssim",
    "variety",
]
