"""Which images of a labelled benchmark are used, and which of them form a group."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffem.data.source import Labels, Splits
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check


@dataclass(frozen=True)
class LabelChoice:
    """A choice among labelled images, by their labels.

    Raises:
        UserError: If a label is no whole number, or is in two groups, or a fraction is outside
            (0, 1].
    """

    only: Sequence[int] | None = None
    """The labels of the images that are used, in both splits; None for all."""
    thin: Mapping[str, float] | None = None
    """For some labels the fraction of their training images that is used, rounded up: the first
    ones. Held-out images all stay."""
    groups: list[Sequence[int]] | None = None
    """The labels of each group but the last, which has all others; None for no groups."""

    def __post_init__(self) -> None:
        if self.only is not None:
            check("dataset.only", self.only)
            if not isinstance(self.only, Sequence):
                raise UserError(
                    f"dataset.only must be a list of labels, as in [4,7], got {self.only!r}"
                )
        if self.thin is not None:
            if not isinstance(self.thin, Mapping) or not all(map(str.isdecimal, self.thin)):
                raise UserError(
                    "dataset.thin must give labels their fractions, as in {4: 0.1, 7: 0.1}, got "
                    f"{self.thin!r}"
                )
            for fraction in self.thin.values():
                check("dataset.thin", fraction)
        if self.groups is not None:
            lists = isinstance(self.groups, list) and all(
                isinstance(group, list) and group for group in self.groups
            )
            if not (lists and self.groups):
                raise UserError(
                    f"dataset.groups must be lists of labels, as in [[4,7]], got {self.groups!r}"
                )
            for labels in self.groups:
                check("dataset.groups", labels)
            grouped = [label for labels in self.groups for label in labels]
            if twice := [label for label in grouped if grouped.count(label) > 1]:
                raise UserError(
                    f"dataset.groups names {twice[0]} twice, got {self.groups!r}; name it once"
                )

    @property
    def selects(self) -> bool:
        """Whether some images may be left out."""
        return self.only is not None or bool(self.thin)

    def select(self, images: Splits, labels: Labels) -> Splits:
        """Returns the images that are used.

        Arguments:
            images: All images.
            labels: Their labels.
        """
        return Splits(*(x[rows] for x, rows in zip(images, self._rows(labels), strict=True)))

    def select_labels(self, labels: Labels) -> Labels:
        """Returns the labels of the images that are used."""
        return Labels(*(part[rows] for part, rows in zip(labels, self._rows(labels), strict=True)))

    def groups_of(self, labels: Labels) -> Labels:
        """Returns the number of each image's group, from 0.

        Arguments:
            labels: The labels of the images that are used.
        """
        groups = self.groups or ()
        numbers = Labels(*(torch.full_like(part, len(groups)) for part in labels))
        for number, part in zip(numbers, labels, strict=True):
            for group, own in enumerate(groups):
                number[torch.isin(part, torch.tensor(own))] = group
        return numbers

    def _rows(self, labels: Labels) -> tuple[Tensor, Tensor]:
        """Returns which images of both splits are used, (N,) and (N',).

        Raises:
            UserError: If a label is named of which there is no image.
        """
        found = set(torch.cat(labels).tolist())
        grouped = [label for group in self.groups or () for label in group]
        used = found if self.only is None else found & set(self.only)
        for key, named, known in (
            ("only", self.only or (), found),
            ("thin", map(int, self.thin or ()), used),
            ("groups", grouped, found),
        ):
            if unknown := sorted(set(named) - known):
                raise UserError(
                    f"dataset.{key} names {unknown[0]}, a label without an image; there are "
                    f"{sorted(known)}"
                )
        train, heldout = (torch.ones_like(part, dtype=torch.bool) for part in labels)
        if self.only is not None:
            train, heldout = (torch.isin(part, torch.tensor(self.only)) for part in labels)
        for label, fraction in (self.thin or {}).items():
            own = (labels.train == int(label)).nonzero().flatten()
            train[own[math.ceil(fraction * len(own)) :]] = False
        return train, heldout
