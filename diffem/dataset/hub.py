"""Image sets of the Hugging Face hub, or of a local folder in one of its layouts."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffem.dataset.base import Splits, checked, limited
from diffem.error import UserError


class HubImages:
    """Images of a data set that `datasets.load_dataset` knows, such as CIFAR-10 and CelebA.

    Images are cropped to the largest central square (of at most `crop` pixels), resized to
    `shape` and scaled to [-1, 1]. The local cache is used first, and alone where HF_HUB_OFFLINE=1.

    Arguments:
        path: The data set's name on the hub, or a local folder.
        shape: The shape of an image, (3, H, W) or (1, H, W).
        column: The column that holds the images.
        splits: The names of the training and the held-out split.
        crop: The side of the central crop in pixels; None for the largest square.
        limits: The number of training and held-out images to use; None for all.
    """

    def __init__(
        self,
        path: str,
        shape: Sequence[int],
        *,
        column: str,
        splits: Sequence[str],
        crop: int | None = None,
        limits: Sequence[int | None] = (None, None),
    ) -> None:
        self.path = path
        self.shape = tuple(shape)
        self.column = column
        self.splits = splits
        self.crop = crop
        self.limits = limits

    def load(self) -> Splits:
        """Returns the images of both splits, (N, C, H, W), in [-1, 1].

        Raises:
            UserError: If the data set is neither cached nor reachable, or has no such column.
        """
        train, heldout = (
            self._load(split, limit) for split, limit in zip(self.splits, self.limits, strict=True)
        )
        return checked(Splits(train, heldout), self.shape)

    def _load(self, split: str, limit: int | None) -> Tensor:
        import datasets  # takes seconds to import: only where it is used

        datasets.disable_progress_bars()
        try:
            data = datasets.load_dataset(self.path, split=split)
        except Exception as error:  # the hub raises dozens of types
            raise UserError(
                f"dataset.path: {self.path!r} (split {split!r}) is neither in the Hugging Face "
                f"cache nor reachable ({type(error).__name__}); run once with network, or give a "
                "local folder of images"
            ) from error
        assert isinstance(data, datasets.Dataset)
        if self.column not in data.column_names:
            raise UserError(
                f"dataset.column must be one of {data.column_names} for {self.path!r}, "
                f"got {self.column!r}"
            )
        data = data.select(range(min(len(data), limit or len(data))))
        images = np.stack([self._prepare(row[self.column]) for row in data])  # type: ignore[index]
        x = limited(torch.from_numpy(images), limit)
        return x.float().div_(127.5).sub_(1)

    def _prepare(self, image: Image.Image) -> np.ndarray:
        side = min(*image.size, self.crop or min(image.size))
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.convert("RGB" if self.shape[0] == 3 else "L")
        if image.size != (self.shape[2], self.shape[1]):
            image = image.resize((self.shape[2], self.shape[1]), Image.Resampling.BICUBIC)
        array = np.asarray(image, dtype=np.uint8)
        return array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)
