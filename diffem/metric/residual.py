"""Residual χ² of a reconstruction against its measurement; it needs no ground truth."""

from torch import Tensor

from diffem.corruption import Channel, LinearChannel, Measurement
from diffem.metric.metric import Metric
from diffem.metric.score import Score


class ResidualChi2(Metric):
    """mean((y - A x̂)² / V[y | x̂]) over the measured entries of a linear channel.

    For samples of the true posterior it is 1 in expectation, because (x̂, y) then has the joint
    law of (x, y).
    """

    score = Score("residual_chi2", "residual χ²", heading="χ²", expected=1.0)
    requires = LinearChannel

    def compute(
        self, x: Tensor, truth: Tensor, channel: Channel, measurement: Measurement
    ) -> Tensor:
        """Returns the residual χ² of each reconstruction, (B,)."""
        assert isinstance(channel, LinearChannel)
        return channel.residual_chi2(measurement, x)
