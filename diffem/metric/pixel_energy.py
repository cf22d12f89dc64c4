"""The energy distance of two sets of images, of their pixels."""

import torch
from torch import Tensor

from diffem.metric.features import Extractor
from diffem.metric.score import Score

LARGEST = 4096  # images of each set: the cost is quadratic in them


class PixelEnergy(Extractor):
    """2 E‖a - b‖ - E‖a - a'‖ - E‖b - b'‖ of the images themselves; it needs no network.

    Székely & Rizzo (2013). It is 0 if and only if the two laws are the same, where a Fréchet
    distance compares two moments alone. The estimate is without bias, and can be negative.
    """

    name = "energy"

    def __init__(self) -> None:
        super().__init__()

    @property
    def scores(self) -> list[Score]:
        """What `compare` returns."""
        return [Score("energy_distance", "energy distance", digits=4, better="lower", images=2)]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the pixels, (B, D), of images, (B, *shape)."""
        return x.flatten(1)

    def compare(self, features: Tensor, reference: Tensor) -> dict[str, float]:
        """Returns the energy distance of two independent sets, of the first 4,096 of each."""
        a, b = (x[:LARGEST].double() for x in (features, reference))
        within = sum(float(torch.cdist(x, x).sum()) / (len(x) * (len(x) - 1)) for x in (a, b))
        return {"energy_distance": 2 * float(torch.cdist(a, b).mean()) - within}
