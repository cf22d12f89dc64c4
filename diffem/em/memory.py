"""Memory: what keeps a run from forgetting what the earlier run that it continues had learned.

Measurements arrive over time, and the old ones may have been deleted. M-steps on the new ones
alone forget what they do not show (Zając et al. 2023, arXiv 2303.15342). Learning from
reconstructions or samples M of the old images as well prevents it, without an old measurement:

    x̂ ~ (1 - f) D_k + f M,   ỹ ~ q(· | x̂)

Images are remembered, not measurements: ỹ is drawn from the present channel, not the earlier one.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check
from diffem.runtime.rng import Key, generator
from diffem.storage.reconstructions import Batch


class Memory:
    """No memory: M-steps learn from D_k alone.

    Arguments:
        path: The directory of an earlier run, whose held-out measurements are evaluated too; None
            for none.
    """

    remembers = False
    """Whether M-steps learn from images of the earlier run."""

    def __init__(self, path: str | None = None) -> None:
        if not isinstance(path, str | None):
            raise UserError(f"memory.path must be the directory of a run, got {path!r}")
        self.path = None if path is None else Path(path)

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch that an optimiser step learns from."""
        return batch

    def recall(self, images: Tensor) -> None:
        """Takes the images that the run has kept of the earlier one, (n, *shape)."""


class Replay(Memory):
    """Puts reconstructions of the earlier run in the place of a fraction of every batch.

    Arguments:
        path: The earlier run's directory.
        fraction: The probability f of each row of a batch to be one of them, in (0, 1).
        size: How many images are kept. The earlier run's own memory has a share of them: that of
            the measurements that it stands for among all.
    """

    remembers = True

    def __init__(self, path: str, fraction: float, size: int) -> None:
        super().__init__(path)
        self.fraction = float(check("memory.fraction", fraction))
        self.size = check("memory.size", size)
        self.images = torch.empty(0)

    def __call__(self, batch: Batch) -> Batch:
        """Returns a batch with images of the memory in some places, by the global generators."""
        x = batch.x
        old = torch.rand(len(x), device=x.device) < self.fraction
        index = torch.randint(len(self.images), (len(x),), device=x.device)
        if self.images.device != x.device:
            self.images = self.images.to(x.device)
        x = torch.where(old.view(-1, *(1,) * (x.ndim - 1)), self.images[index], x)
        return batch._replace(x=x, remembered=old)

    def recall(self, images: Tensor) -> None:
        """Takes the images."""
        self.images = images


class Generative(Replay):
    """Puts samples of the earlier run's prior in the place of a fraction of every batch.

    They are drawn once, before the first round; no measurement or reconstruction of the earlier
    run is needed.
    """


def pooled(
    new: Tensor, old: Mapping[str, Tensor], *, size: int, count: int, key: tuple[Key, ...]
) -> dict[str, Tensor]:
    """Returns images that stand for all that a run has seen.

    Arguments:
        new: The run's own reconstructions, (N, *shape).
        old: What the run kept of those before it, as this function returns it; or nothing.
        size: How many images to return, at most.
        count: The number of measurements that `new` stands for.
        key: What the choice depends on.

    Returns:
        `images`, and the number of measurements that they `stand_for`, ().
    """
    before = int(old.get("stand_for", len(old["images"]))) if "images" in old else 0
    total, parts = before + count, []
    own = round(size * count / total)
    for images, some in ((new, own), (old.get("images", new[:0]), size - own)):
        order = torch.randperm(len(images), generator=generator(*key, len(parts)))
        parts.append(images[order[:some]])
    return {"images": torch.cat(parts), "stand_for": torch.tensor(total)}
