"""Folders of PNG or TIFF images, read without loss when they are asked for."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from diffem.data.source import inside, unreadable
from diffem.runtime.errors import UserError

SUFFIXES = (".png", ".tif", ".tiff")
DEEP = {  # Pillow's modes of more than 8 bits, all of them grey
    "I;16": np.uint16,
    "I;16B": np.uint16,
    "I;16L": np.uint16,
    "I": np.int32,
    "F": np.float32,
}
DTYPES = {"L": np.uint8, "RGB": np.uint8, **DEEP}  # of the modes that lose nothing
BITS, SAMPLE_FORMAT, UNSIGNED = 258, 339, 1  # tags of TIFF and a value (TIFF 6.0, pages 29 and 80)


class ImageFolder:
    """The images of a folder in the order of their names; each is decoded when it is asked for.

    Hidden files, whose names begin with a dot, are none of them: macOS writes such beside others.

    Arguments:
        folder: The folder.
        limit: The largest number of images to use; None for all.
        key: The setting that names the folder, as the sentences begin.
        alike: Whether they must be of one size; rows of several sizes are asked for one by one.

    Raises:
        UserError: If there are no images, or one cannot be read without loss, or is of another
            shape or type than the first, or has the name of another but for its suffix.
    """

    def __init__(self, folder: Path, *, limit: int | None, key: str, alike: bool = True) -> None:
        self.key, self.alike = key, alike
        try:
            found = sorted(
                f
                for f in folder.iterdir()
                if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")
            )
        except OSError as error:
            raise unreadable(f"{key}: {folder}", error) from error
        if not found:
            raise UserError(
                f"{key}: {folder} has no {', '.join(SUFFIXES)} files; put the images there"
            )
        self.files = [inside(file, folder, key=key) for file in found[:limit]]
        self._shape, self.dtype = read_header(self.files[0], key)
        self.shapes: list[tuple[int, ...]] = []
        names: dict[str, Path] = {}
        for file in self.files:
            shape, dtype = read_header(file, key)
            self._check(file, shape, dtype)
            self.shapes.append(shape)
            if (other := names.setdefault(file.stem, file)) is not file:
                raise UserError(
                    f"{key}: {file} and {other.name} differ in nothing but the suffix; rename one"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, (N, C, H, W); of files of several sizes, that of the first."""
        return len(self.files), *self._shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns images, (n, C, H, W), in their own dtype.

        Raises:
            UserError: If one is gone, damaged, or is no longer of the shape and type that it was.
        """
        first = self.shapes[rows[0]] if len(rows) else self._shape
        images = np.empty((len(rows), *first), self.dtype)
        for i, row in enumerate(rows):
            image = read_image(self.files[row], self.key)
            self._check(self.files[row], image.shape, image.dtype, self.shapes[row])
            images[i] = image
        return images

    def _check(
        self,
        file: Path,
        shape: tuple[int, ...],
        dtype: np.dtype,
        expected: tuple[int, ...] | None = None,
    ) -> None:
        """Refuses a file of another shape and type than is expected, by default that of the first.

        Raises:
            UserError: If it is one; files of several sizes have channels and type in common.
        """
        if expected is None:
            expected = self._shape if self.alike else (self._shape[0], *shape[1:])
        if shape != expected or dtype != self.dtype:
            advice = "must be alike, or be cut by dataset.patch"
            if not self.alike:
                advice = "must have the same channels and type"
            raise UserError(
                f"{self.key}: {file} is {dtype} of shape {list(shape)}, but "
                f"{self.files[0].name} is {self.dtype} of shape {list(self._shape)}; all "
                f"measurements {advice}"
            )


def read_header(file: Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Returns an image's shape, (C, H, W), and dtype; it is not decoded.

    Arguments:
        file: The file.
        key: As the sentences begin.

    Raises:
        UserError: If it is no image, or cannot be read without loss (alpha, a palette, several
            pages).
    """
    with _opened(file, key) as image:
        channels = len(image.getbands())
        return (channels, image.height, image.width), np.dtype(DTYPES[image.mode])


def read_image(file: Path, key: str) -> np.ndarray:
    """Returns an image, (C, H, W), with its own numbers and dtype.

    Arguments:
        file: The file.
        key: As the sentences begin.

    Raises:
        UserError: If it is no image, is damaged, or cannot be read without loss.
    """
    with _opened(file, key) as image:
        array = np.asarray(image)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


@contextmanager
def _opened(file: Path, key: str) -> Iterator[Image.Image]:
    """Opens an image that loses nothing; every error in the scope is one sentence."""
    if file.exists() and not file.is_file():  # opening a pipe would wait
        raise UserError(f"{key}: {file} is no file; move it elsewhere")
    try:
        with warnings.catch_warnings(), Image.open(file, formats=("PNG", "TIFF")) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if lossy := _loss(image, file):
                raise UserError(
                    f"{key}: {file} ({lossy}) would lose values: only single-page grey (8-bit, "
                    "16-bit, 32-bit, float) or 8-bit RGB images without alpha are read; convert "
                    "it, or give a .npz file"
                )
            yield image
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{key}: {file} is too large ({error}); crop it") from error
    except Exception as error:  # decoders raise many types
        raise unreadable(f"{key}: {file}", error) from error


def _loss(image: Image.Image, file: Path) -> str | None:
    """Returns what would be lost of an image; None if nothing would be."""
    if (pages := getattr(image, "n_frames", 1)) != 1:
        return f"{image.mode}, {pages} pages"
    if image.mode not in DTYPES:
        return image.mode
    if "transparency" in image.info:
        return f"{image.mode} with transparency"
    with file.open("rb") as content:
        return lost_bits(image, content)


def lost_bits(image: Image.Image, content: IO[bytes]) -> str | None:
    """Returns which depth or channels Pillow drops of a PNG or TIFF image; None if none.

    Arguments:
        image: The image.
        content: Its file, whose position stays.
    """
    depths: tuple[int, ...] = getattr(image, "tag_v2", {}).get(BITS, (8,))
    if image.format == "PNG":
        position = content.tell()
        content.seek(24)  # the bits of a channel (PNG specification, 11.2.1)
        depths = (content.read(1)[0],)
        content.seek(position)
    if (max(depths) > 8 and image.mode not in DEEP) or len(depths) > len(image.getbands()):
        return f"{max(depths)} bits of {image.mode}, {len(depths)} channels in the file"
    if image.mode == "I" and image.format == "TIFF" and max(depths) == 32:
        signed = image.tag_v2.get(SAMPLE_FORMAT, (UNSIGNED,))[0] != UNSIGNED  # type: ignore[attr-defined]
        return None if signed else "32-bit unsigned"
    return None
