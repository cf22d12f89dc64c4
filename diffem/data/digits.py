"""1,797 handwritten digits of 8 × 8 pixels, which are part of scikit-learn."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from diffem.data.labelled import LabelChoice
from diffem.data.source import Labels, Splits, checked
from diffem.runtime.ranges import check
from diffem.runtime.rng import generator


class Digits:
    """The test set of UCI's optical digits (Alpaydin & Kaynak 1998), in a fixed random order.

    Arguments:
        shape: (1, 8, 8).
        train: The number of training images, in [1, 1796]; the others are held out.
        only: The digits of which images are used; None for all.
        thin: For some digits the fraction of their training images that is used.
        groups: The digits of each group but the last, which has the others; None for no groups.

    Raises:
        UserError: If `train`, a digit or a fraction is out of its range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        train: int,
        *,
        only: Sequence[int] | None = None,
        thin: Mapping[str, float] | None = None,
        groups: list[Sequence[int]] | None = None,
    ) -> None:
        self.shape = shape
        self.train = check("dataset.train@digits", train)
        self.choice = LabelChoice(only, thin, groups)

    def load(self) -> Splits:
        """Returns the images of both splits, (N, 1, 8, 8), in [-1, 1]."""
        pixels, _ = _load()
        x = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
        x = x[_order()]
        images = Splits(x[: self.train], x[self.train :])
        if self.choice.selects:
            images = self.choice.select(images, self._labels())
        return checked(images, self.shape)

    def labels(self) -> Labels:
        """Returns the digits in the images of both splits, (N,), 0 to 9."""
        return self.choice.select_labels(self._labels())

    def groups(self) -> Labels | None:
        """Returns the number of each image's group, (N,); None without groups."""
        return self.choice.groups_of(self.labels()) if self.choice.groups is not None else None

    def _labels(self) -> Labels:
        """Returns the digits in all images of both splits."""
        _, digits = _load()
        labels = torch.as_tensor(digits, dtype=torch.int64)[_order()]
        return Labels(labels[: self.train], labels[self.train :])


@cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels, (1797, 64), 0 to 16, and the digits, (1797,)."""
    from sklearn.datasets import load_digits  # takes a second to import

    pixels, digits = load_digits(return_X_y=True)
    return np.asarray(pixels), np.asarray(digits)


def _order() -> Tensor:
    # scikit-learn's images are ordered by writer: shuffle them, in the same way for every seed.
    return torch.randperm(1797, generator=generator("digits"))
