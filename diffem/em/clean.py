"""Clean images among the reconstructions: what no measurement measures is learned from a few."""

from pathlib import Path

import torch
from torch import Tensor

from diffem.data.arrays import numbers
from diffem.data.held import open_measurements
from diffem.data.measurements import MeasurementSet
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


class CleanShare:
    """Puts clean images in the place of a share of every batch's reconstructions.

    M-steps then learn from p = (1 - s) D_k + s h, where h are a few clean images (Lu, Wu, Yu
    2025, SFBD-OMNI, arXiv 2512.17051): directions that a fixed blur removes from every
    measurement are learned from h. The images need not belong to the measurements.

    Arguments:
        share: The probability s of each row of a batch to be a clean image, in (0, 1).
        count: How many of the clean images are used, the first ones; None for all.
        path: A folder or an array file of clean images in the data's units; None for the first
            of a benchmark's own training images.
    """

    def __init__(self, *, share: float, count: int | None = None, path: str | None = None) -> None:
        self.share = float(check("m_step.clean.share", share))
        self.count = check("m_step.clean.count", count)
        self.path = path
        self.images = torch.empty(0)

    def load(self, measurements: MeasurementSet) -> None:
        """Reads the clean images, (n, *shape), on the scale of [-1, 1].

        Arguments:
            measurements: The training measurements, whose truth is used where there is no path.

        Raises:
            UserError: If there are none, or they have another shape than the run's images.
        """
        if self.path is None:
            images = measurements.known_truth("m_step.clean without a path")[: self.count]
        else:
            held = open_measurements(Path(self.path), limit=self.count, key="m_step.clean.path")
            rows = slice(0, len(held.y) if self.count is None else self.count)
            values = held.y[torch.arange(len(held.y))[rows].numpy()]
            images = measurements.scale.normalise(numbers(values, held.name)).float()
            shape = measurements.channel.shape
            if images.ndim == len(shape):
                images = images[:, None]
            if images.shape[1:] != shape:
                raise UserError(
                    f"{held.name} holds images of shape {list(images.shape[1:])}, and the run's "
                    f"are {list(shape)}; give others"
                )
        self.images = images

    def __call__(self, x: Tensor) -> Tensor:
        """Returns a batch with clean images in some places, drawn from the global generators."""
        chosen = torch.rand(len(x), device=x.device) < self.share
        index = torch.randint(len(self.images), (len(x),), device=x.device)
        if self.images.device != x.device:
            self.images = self.images.to(x.device)
        return torch.where(chosen.view(-1, *(1,) * (x.ndim - 1)), self.images[index], x)
