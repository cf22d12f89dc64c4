"""How much of a reconstruction lies outside of the range of the images."""

from torch import Tensor

from diffem.corruption import Channel, Measurement
from diffem.metric.metric import Metric
from diffem.metric.score import Score


class Outside(Metric):
    """The fraction of the entries of x̂ that are below -1 or above 1; it needs no ground truth.

    Clean images on the scale of [-1, 1] have none, and neither have samples of their posterior.
    """

    score = Score("outside", "outside of [-1, 1]", heading="outside", better="lower")

    def compute(
        self, x: Tensor, truth: Tensor, channel: Channel, measurement: Measurement
    ) -> Tensor:
        """Returns the fraction of each reconstruction, (B,)."""
        return (x.abs() > 1).float().flatten(1).mean(dim=1)
