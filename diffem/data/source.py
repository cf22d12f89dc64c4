"""What a data set is: clean images of a benchmark, from which measurements are simulated."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffem.runtime.errors import UserError


class Splits(NamedTuple):
    """Clean images of a benchmark."""

    train: Tensor
    """Images behind the training measurements, (N, *shape), float32 in [-1, 1]."""
    heldout: Tensor
    """Images behind the held-out measurements, (N', *shape), which are never trained on."""


class Labels(NamedTuple):
    """Labels of a benchmark's images; for metrics only."""

    train: Tensor
    """Labels of the training images, (N,), int64, at least 0."""
    heldout: Tensor
    """Labels of the held-out images, (N',), int64, at least 0."""


class ImageDataset(Protocol):
    """A source of clean images."""

    def load(self) -> Splits:
        """Returns the images of both splits."""
        ...


@runtime_checkable
class LabelledDataset(ImageDataset, Protocol):
    """A source of clean images with labels."""

    def labels(self) -> Labels:
        """Returns the labels of both splits, in the order of the images."""
        ...


def checked(splits: Splits, shape: Sequence[int]) -> Splits:
    """Returns splits after checking them.

    Arguments:
        splits: The clean images.
        shape: The shape of an image, `dataset.shape`.

    Raises:
        UserError: If a split is empty, of another shape than `dataset.shape`, or holds values
            that are not finite.
    """
    for name, x in zip(splits._fields, splits, strict=True):
        if len(x) == 0:
            raise UserError(f"dataset: the {name} split is empty; it needs at least one image")
        if tuple(x.shape[1:]) != tuple(shape):
            raise UserError(
                f"dataset.shape is {list(shape)}, but the {name} images have shape "
                f"{list(x.shape[1:])}; set dataset.shape to the images' own shape"
            )
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x.flatten(1)).all(dim=1)).nonzero()[0])
            raise UserError(
                f"dataset: {name} image {bad} holds NaN or infinity; remove or repair it"
            )
    return splits


def inside(file: Path, *folders: Path, key: str = "dataset.path") -> Path:
    """Returns a file after checking that it is inside a data folder.

    Arguments:
        file: The file.
        folders: The folders that it may be in.
        key: The setting that names the folder, as the sentence begins.

    Raises:
        UserError: If it is a link, or behind a link, that leads out of the folders.
    """
    real = file.resolve()
    if not any(real.is_relative_to(folder.resolve()) for folder in folders):
        raise UserError(
            f"{key}: {file} leads out of {folders[0]}, to {real}; put the file itself there"
        )
    return file


def unreadable(name: str, error: Exception) -> UserError:
    """Returns the error that says, in one sentence, why a file cannot be read and what to do.

    Arguments:
        name: What the sentence calls the file.
        error: What reading it raised.
    """
    advice = damaged = "repair it, or get it again"
    if isinstance(error, FileNotFoundError):
        advice = "put it back"
    elif isinstance(error, PermissionError):
        advice = "allow this user to read it"
    # The text of an OSError repeats the file's name.
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    if advice == damaged and " " not in reason:  # one word, as a key, says nothing by itself
        reason = f"it seems damaged: {type(error).__name__} {reason}".rstrip()
    return UserError(f"{name} cannot be read ({reason or type(error).__name__}); {advice}")
