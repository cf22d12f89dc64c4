"""Metrics: a number for each reconstruction, from x̂, the clean image x and the measurement y."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from diffem.corruption import Channel, Measurement
from diffem.corruption.channel import NEEDS
from diffem.metric.score import Score


class Metric(ABC):
    """Abstract metric of single reconstructions.

    Arguments:
        required: Whether a run is refused if the metric cannot be computed for its channel or its
            data; otherwise the metric is left out of the run.
    """

    score: Score
    """How the metric is named and shown; a run reports its mean over reconstructions."""
    needs_truth: ClassVar[bool] = False
    """Whether it compares with the clean images."""
    needs_images: ClassVar[bool] = False
    """Whether it is defined for images alone, (C, H, W), and not for signals and vectors."""
    requires: ClassVar[type[Channel]] = Channel
    """The class of channels for which it is defined."""
    of_mean: ClassVar[bool] = False
    """Whether it is also computed for the mean of several samples of each posterior."""
    heavy: ClassVar[bool] = False
    """Whether it takes a large network: it is then computed only for the held-out measurements, at
    the end."""

    def __init__(self, *, required: bool = True) -> None:
        self.required = required

    @abstractmethod
    def compute(
        self, x: Tensor, truth: Tensor, channel: Channel, measurement: Measurement
    ) -> Tensor:
        """Returns the metric of each reconstruction, (B,).

        NaN where it is not defined, as for a measurement without measured entries: such
        reconstructions are left out of the mean. All tensors are on one device, that of the run.

        Arguments:
            x: One reconstruction x̂ of each measurement, (B, *shape).
            truth: The clean images x, (B, *shape); only for metrics with `needs_truth`.
            channel: The channel, as it is assumed or was learned; an instance of `requires`.
            measurement: The measurements y, (B, …).
        """

    def obstacle(self, channel: Channel, *, truth: bool = True) -> str | None:
        """Returns why the metric cannot be computed, as in "needs images …"; None if it can be.

        Arguments:
            channel: The channel; its `shape` is that of the images.
            truth: Whether the clean images are known.
        """
        if self.needs_truth and not truth:
            return "needs clean images, and these measurements have none"
        if not isinstance(channel, self.requires):
            return f"needs {NEEDS[self.requires][0]}, got {channel}"
        if self.needs_images and len(channel.shape) != 3:
            return f"needs images of shape (C, H, W), got the shape {list(channel.shape)}"
        return None

    @property
    def scores(self) -> list[Score]:
        """What a run reports of the metric."""
        if self.heavy:
            return [self.score]
        own = replace(self.score, heading=self.score.heading or self.score.label)
        return [own, own.of_the_mean()] if self.of_mean else [own]
