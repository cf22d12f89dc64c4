"""Image data sets of the Hugging Face hub, or local folders in one of its layouts."""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from diffem.data.images import DEEP, lost_bits
from diffem.data.scale import Scale, clean_images
from diffem.data.source import Labels, Splits, checked, inside
from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "PPM",
)  # EPS would start a program
SHRINK = 64  # the largest ratio of an image's side to the side that it is resized to


class HubImages:
    """Images of a data set that `datasets.load_dataset` can read, such as CIFAR-10 and CelebA.

    Images are cropped to the largest central square (of at most `crop` pixels), resized to
    `shape` in their own depth and scaled to [-1, 1]. Colours become grey, and grey three equal
    channels, where `shape` asks for it. The local cache is used first; with HF_HUB_OFFLINE=1
    nothing is downloaded.

    Arguments:
        path: The data set's name on the hub, or a local folder.
        shape: The shape of an image, (3, H, W) or (1, H, W).
        column: The column that holds the images.
        splits: The names of the training and the held-out split.
        crop: The side of the central crop in pixels; None for the largest square.
        limits: The largest number of training and of held-out images to use; None for all.
        range: [low, high], the values that become -1 and 1; None for all that unsigned 8-bit or
            16-bit numbers hold. Nothing is clipped.
        label: The column that holds the labels: whole numbers from 0, or booleans.

    Raises:
        UserError: If a number is too small, or there are not two splits and two limits.
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
        range: Sequence[float] | None = None,
        label: str = "label",
    ) -> None:
        if len(splits) != 2 or not all(isinstance(split, str) for split in splits):
            raise UserError(
                f"dataset.splits must be the names of a training and a held-out split, got "
                f"{list(splits)}"
            )
        if len(limits) != 2:
            raise UserError(f"dataset.limits must be two numbers or null, got {list(limits)}")
        check("dataset.crop", crop)
        check("dataset.limits", limits)
        self.path = path
        self.shape = tuple(shape)
        self.column = column
        self.splits = splits
        self.crop = crop
        self.limits = limits
        self.scale = Scale.of(range)
        self.label = label

    def load(self) -> Splits:
        """Returns the images of both splits, (N, C, H, W), in [-1, 1].

        Raises:
            UserError: If the data set is neither cached nor reachable, has no such column, or an
                image is missing, damaged, too large, not opaque, or of another type than the
                first; or if the type needs a range.
        """
        train, heldout = (self._images(self._rows(i, "column", self.column)) for i in (0, 1))
        if train.dtype != heldout.dtype:
            raise UserError(
                f"dataset.path: {self.path!r} has {train.dtype} images in split "
                f"{self.splits[0]!r} and {heldout.dtype} ones in {self.splits[1]!r}; convert one"
            )
        scaled = (
            clean_images(x, self.scale, f"split {split!r} of {self.path!r}")
            for x, split in zip((train, heldout), self.splits, strict=True)
        )
        return checked(Splits(*scaled), self.shape)

    def labels(self) -> Labels:
        """Returns the labels of both splits, (N,).

        Raises:
            UserError: If the data set is neither cached nor reachable, or has no such
                column of labels.
        """
        train, heldout = (self._rows(i, "label", self.label)[self.label][:] for i in (0, 1))
        if not all(isinstance(v, int) and v >= 0 for v in (*train, *heldout)):
            raise UserError(
                f"dataset.label: column {self.label!r} of {self.path!r} must hold whole numbers "
                "of at least 0; choose another column by +dataset.label=COLUMN"
            )
        return Labels(torch.tensor(train).long(), torch.tensor(heldout).long())

    def _rows(self, index: int, key: str, column: str) -> "Dataset":
        """Returns the rows of a split (0: training, 1: held-out) that are used."""
        import datasets  # an optional package, which takes seconds to import

        split, limit = self.splits[index], self.limits[index]
        datasets.disable_progress_bars()
        if Path(self.path).is_dir() and set("*?[") & set(str(Path(self.path).resolve())):
            raise UserError(
                f"dataset.path: {self.path!r} must not have '*', '?' or '[' in it, which the "
                "library `datasets` takes for a pattern; rename the folder"
            )
        for file in Path(self.path).rglob("*"):  # empty if it is a name on the hub
            if file.is_symlink():
                inside(file, Path(self.path))
        try:
            data = datasets.load_dataset(self.path, split=split)
        except Exception as error:  # the hub raises dozens of types
            raise UserError(
                f"dataset.path: {self.path!r} (split {split!r}) is neither in the Hugging Face "
                f"cache nor reachable ({type(error).__name__}); run once with network, or give a "
                "local folder of images"
            ) from error
        assert isinstance(data, datasets.Dataset)
        if len(data) == 0:
            raise UserError(f"dataset.path: split {split!r} of {self.path!r} holds nothing")
        if column not in data.column_names:
            raise UserError(
                f"dataset.{key} must be one of {data.column_names} for {self.path!r}, "
                f"got {column!r}"
            )
        return data.select(range(min(len(data), limit or len(data))))

    def _images(self, rows: "Dataset") -> np.ndarray:
        """Returns the images of a split, (N, C, H, W), in their own type."""
        import datasets
        from datasets.config import HF_DATASETS_CACHE

        if not isinstance(rows.features[self.column], datasets.Image):
            raise UserError(
                f"dataset.column: column {self.column!r} of {self.path!r} holds no images; choose "
                "another column"
            )
        raw = rows.cast_column(self.column, datasets.Image(decode=False))
        folders = Path(self.path), Path(HF_DATASETS_CACHE)
        images = []
        for i, row in enumerate(raw):
            images.append(self._prepare(row[self.column], i, folders))  # type: ignore[index]
            if images[i].dtype != images[0].dtype:
                raise UserError(
                    f"{self._name(row[self.column], i)} is {images[i].dtype}, but image 0 is "  # type: ignore[index]
                    f"{images[0].dtype}; convert one of them"
                )
        return np.stack(images)

    def _name(self, value: Mapping[str, Any], number: int) -> str:
        """Returns what the sentences call an image."""
        return f"dataset.path: image {number} of {self.path!r} ({value['path']})"

    def _prepare(
        self, value: Mapping[str, Any] | None, number: int, folders: Sequence[Path]
    ) -> np.ndarray:
        """Returns an image, (C, H, W), cropped and resized, in its own type."""
        image = self._decode(value, number, folders)
        side = min(*image.size, self.crop or min(image.size))
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        size, shape = (self.shape[2], self.shape[1]), self.shape
        if image.mode in DEEP:
            array = deep_pixels(image, size)
            return np.broadcast_to(array, (shape[0], *array.shape))
        image = image.convert("RGB" if shape[0] == 3 else "L")
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        array = np.asarray(image, dtype=np.uint8)
        return array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)

    def _decode(
        self, value: Mapping[str, Any] | None, number: int, folders: Sequence[Path]
    ) -> Image.Image:
        """Returns an image; its size is checked before it is decoded."""
        if not value:
            raise UserError(f"dataset.path: image {number} of {self.path!r} is missing; remove it")
        name = self._name(value, number)
        held = value["bytes"]
        file = inside(Path(value["path"]), *folders) if held is None else None
        try:
            with (
                file.open("rb") if file else BytesIO(held or b"") as source,
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(source, formats=FORMATS)
                limit = SHRINK**2 * self.shape[1] * self.shape[2]
                if image.width * image.height > limit:
                    raise UserError(
                        f"{name} has {image.width} × {image.height} pixels, more than {limit} for "
                        f"dataset.shape={list(self.shape)}; scale it down or remove it"
                    )
                if lossy := lost_bits(image, source):
                    raise UserError(f"{name} ({lossy}) would lose values; convert it to 8 bits")
                if not is_opaque(image):
                    raise UserError(
                        f"{name} has transparent pixels, and what is behind them is not known; "
                        "paste it on a background"
                    )
                return ImageOps.exif_transpose(image)
        except UserError:
            raise
        except Exception as error:  # decoders raise many types
            raise UserError(f"{name} cannot be read ({error}); repair or remove it") from error


def deep_pixels(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Returns a 16-bit, 32-bit or float grey image, (H, W), resized without going through 8 bits.

    Arguments:
        image: The image, of a mode of `DEEP`.
        size: The width and height that it is resized to.
    """
    array = np.asarray(image)
    if image.size == size:
        return array.astype(DEEP[image.mode])
    # Pillow resizes 32-bit numbers alone in every version.
    wide = Image.fromarray(array.astype(np.float32 if image.mode == "F" else np.int32))
    resized = np.asarray(wide.resize(size, Image.Resampling.BICUBIC))
    if DEEP[image.mode] == np.uint16:  # the bicubic kernel may leave the range, as of 8 bits
        resized = resized.clip(0, 65535)
    return resized.astype(DEEP[image.mode])


def is_opaque(image: Image.Image) -> bool:
    """Returns whether no pixel of an image is transparent."""
    if not image.has_transparency_data:
        return True
    if image.mode in DEEP:
        return False  # one value is transparent: no camera's image has that
    return image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
