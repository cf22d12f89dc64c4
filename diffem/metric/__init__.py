"""Metrics: of single reconstructions and of sets of images, with ground truth and without."""

from diffem.metric.calibration import Calibration, calibrate
from diffem.metric.classifier import Classifier
from diffem.metric.dinov2 import DINOv2
from diffem.metric.distribution import distribution_scores, frechet, frechet_pixels
from diffem.metric.diversity import (
    diversity,
    diversity_metrics,
    effective_rank,
    find_collapse,
    posterior_std,
    rms_change,
)
from diffem.metric.energy import energy_distance, energy_test
from diffem.metric.evaluation import Evaluation
from diffem.metric.features import Extractor, PixelFeatures
from diffem.metric.inception import Inception
from diffem.metric.lpips import LPIPS
from diffem.metric.metric import Metric
from diffem.metric.nearest import nearest
from diffem.metric.outside import Outside
from diffem.metric.pixel_energy import PixelEnergy
from diffem.metric.psnr import PSNR, psnr
from diffem.metric.residual import ResidualChi2
from diffem.metric.residual_law import residual_law
from diffem.metric.score import Score, describe_scores, read_scores
from diffem.metric.sinkhorn import sinkhorn_divergence
from diffem.metric.ssim import SSIM, ssim

__all__ = [
    "LPIPS",
    "PSNR",
    "SSIM",
    "Calibration",
    "Classifier",
    "DINOv2",
    "Evaluation",
    "Extractor",
    "Inception",
    "Metric",
    "Outside",
    "PixelEnergy",
    "PixelFeatures",
    "ResidualChi2",
    "Score",
    "calibrate",
    "describe_scores",
    "distribution_scores",
    "diversity",
    "diversity_metrics",
    "effective_rank",
    "energy_distance",
    "energy_test",
    "find_collapse",
    "frechet",
    "frechet_pixels",
    "nearest",
    "posterior_std",
    "psnr",
    "read_scores",
    "residual_law",
    "rms_change",
    "sinkhorn_divergence",
    "ssim",
]
