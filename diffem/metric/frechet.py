"""Fréchet distance: ‖μ - μ'‖² + Tr(C + C' - 2 (C C')^½) of two sets of features."""

import torch
from torch import Tensor, nn

BATCH = 4096  # features that are copied to float64 at the same time


class _Identity(nn.Module):
    """The identity, in place of torchmetrics' feature extractor."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Returns the distance of the Gaussians with the two sets' means and covariances.

    Dowson & Landau (1982); for images, Heusel et al. (2017, arXiv 1706.08500). It is computed in
    float64. Few images alone make it large.

    Arguments:
        features: Features, (N, F), N >= 2.
        reference: Features, (N', F), N' >= 2.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds to import

    # Only the first rank computes it, so there must be no collective.
    distance = FrechetInceptionDistance(
        feature=_Identity(features.shape[1]), normalize=True, sync_on_compute=False
    )
    distance.set_dtype(torch.float64)
    for part in reference.split(BATCH):
        distance.update(part, real=True)
    for part in features.split(BATCH):
        distance.update(part, real=False)
    return float(distance.compute())
