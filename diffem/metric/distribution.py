"""Distance of two sets of images: Fréchet distance of their pixels."""

import math

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

LARGEST_SIDE = 8


class PixelFeatures(nn.Module):
    """The pixels themselves as features, pooled to at most 8 along each axis.

    Arguments:
        shape: The shape of an image, (C, *S), or of a vector, (D,).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.sides = tuple(min(side, LARGEST_SIDE) for side in shape[1:])
        self.num_features = shape[0] * math.prod(self.sides)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features, (B, F), of images, (B, *shape)."""
        if len(self.sides) == 1:
            x = nn.functional.adaptive_avg_pool1d(x, self.sides[0])
        elif len(self.sides) == 2:
            x = nn.functional.adaptive_avg_pool2d(x, self.sides)
        return x.flatten(1)


def frechet_pixels(x: Tensor, reference: Tensor) -> float:
    """Returns ‖μ - μ'‖² + Tr(C + C' - 2 (C C')^½) of the pixels' means and covariances.

    It needs no trained network and is not the FID. It sees two moments only; compare it with the
    value that as many true images get, since few images alone make it large.

    Arguments:
        x: Images, (N, *shape), N >= 2.
        reference: Clean images, (N', *shape), N' >= 2.
    """
    features = PixelFeatures(tuple(x.shape[1:]))
    # The first process computes it alone: no synchronisation with the others.
    distance = FrechetInceptionDistance(feature=features, normalize=True, sync_on_compute=False)
    distance.set_dtype(torch.float64)
    distance.update(reference, real=True)
    distance.update(x, real=False)
    return float(distance.compute())
