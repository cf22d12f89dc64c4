"""Feature spaces: maps of images to vectors, in which sets of images are compared."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffem.metric.frechet import frechet_distance
from diffem.metric.score import Score
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check

LARGEST_SIDE = 8
BATCH = 64  # images whose activations are in memory at the same time


class Extractor(nn.Module):
    """Abstract map of images to features.

    Wrong weights are refused when it is constructed. A published network, which may be large, is
    built by `build` before its first use.

    Attributes:
        name: The feature space, as in the score `fd_{name}`.
        num_features: The number of features F.
    """

    name: str
    num_features: int

    def build(self) -> None:
        """Builds the network, once; nothing by default."""

    def check(self, shape: Sequence[int]) -> None:
        """Checks the shape of one image, without the batch; by default all shapes are accepted.

        Raises:
            UserError: If images of this shape have no such features.
        """

    @property
    def scores(self) -> list[Score]:
        """What `compare` returns."""
        return [Score(f"fd_{self.name}", f"FD {self.name}", better="lower", images=2)]

    def compare(self, features: Tensor, reference: Tensor) -> dict[str, float]:
        """Returns the scores of a set's features, (N, F), against the reference's, (N', F)."""
        return {f"fd_{self.name}": frechet_distance(features, reference)}


class PixelFeatures(Extractor):
    """The pixels themselves as features, pooled to at most 8 along each axis.

    Arguments:
        shape: The shape of an image, (C, *S), or of a vector, (D,).
    """

    name = "pixels"

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        check("metric.features.*.shape", shape)
        self.sides = tuple(min(side, LARGEST_SIDE) for side in shape[1:])
        self.num_features = shape[0] * math.prod(self.sides)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features, (B, F), of images, (B, *shape)."""
        if len(self.sides) == 1:
            x = nn.functional.adaptive_avg_pool1d(x, self.sides[0])
        elif len(self.sides) == 2:
            x = nn.functional.adaptive_avg_pool2d(x, self.sides)
        return x.flatten(1)


@torch.no_grad()
def extract(extractor: Extractor, x: Tensor, *, device: torch.device | None = None) -> Tensor:
    """Returns the features of a set of images, (N, F), float32 on the CPU, batch by batch.

    Arguments:
        extractor: The map; it is moved back to the CPU afterwards.
        x: Images, (N, *shape), in [-1, 1].
        device: Where to compute; None for the CPU.
    """
    extractor.build()
    device = device or torch.device("cpu")
    extractor.to(device).eval()
    with torch.autocast(device.type, enabled=False):
        parts = [extractor(part.to(device).float()).float().cpu() for part in x.split(BATCH)]
    extractor.cpu()
    return torch.cat(parts)


def eight_bit_rgb(x: Tensor) -> Tensor:
    """Returns images in the format of published networks: RGB, rounded to 0 … 255, uint8.

    Arguments:
        x: Images, (B, 3, H, W) or grey (B, 1, H, W), in [-1, 1]; other values are clipped.
    """
    x = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return x.expand(-1, 3, -1, -1)


def check_rgb(what: str, shape: Sequence[int]) -> None:
    """Checks that a shape is that of RGB or grey images.

    Raises:
        UserError: For any other shape.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError(
            f"{what} is for images with 1 or 3 channels, got the shape {list(shape)}; use "
            "metric=default"
        )
