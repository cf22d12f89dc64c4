"""Fréchet distance: ‖μ - μ'‖² + Tr(C + C' - 2 (C C')^½) of two sets of features."""

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

BATCH = 4096  # features whose float64 copy is held at once


class _Given(nn.Module):
    """Features that are given as they are."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Returns the distance of the Gaussians with the two sets' means and covariances.

    Dowson & Landau (1982); as a score of images, Heusel et al. (2017, arXiv 1706.08500). Few
    images alone make it large. In float64.

    Arguments:
        features: Features, (N, F), N >= 2.
        reference: Features, (N', F), N' >= 2.
    """
    # The first process computes it alone: no synchronisation with the others.
    distance = FrechetInceptionDistance(
        feature=_Given(features.shape[1]), normalize=True, sync_on_compute=False
    )
    distance.set_dtype(torch.float64)
    for part in reference.split(BATCH):
        distance.update(part, real=True)
    for part in features.split(BATCH):
        distance.update(part, real=False)
    return float(distance.compute())
