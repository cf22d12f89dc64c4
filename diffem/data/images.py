"""PNG, JPEG and TIFF images, as far as Pillow reads them without loss."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from diffem.data.layout import zooms
from diffem.data.reader import TIFF, Content, Note, Reader, Whole
from diffem.data.source import unreadable
from diffem.runtime.errors import UserError

DEEP = {  # Pillow's modes of more than 8 bits, all of them grey
    "I;16": np.uint16,
    "I;16B": np.uint16,
    "I;16L": np.uint16,
    "I": np.int32,
    "F": np.float32,
}
DTYPES = {"1": np.bool_, "L": np.uint8, "RGB": np.uint8, **DEEP}  # of the modes that lose nothing
BITS, SAMPLE_FORMAT, UNSIGNED = 258, 339, 1  # tags of TIFF and a value (TIFF 6.0, pages 29 and 80)
WRITTEN = {".png": {1: ("uint8", "uint16"), 3: ("uint8",)},
           ".tif": {1: ("uint8", "uint16", "int32", "float32"), 3: ("uint8",)}}  # fmt: skip


class LossyImage(UserError):
    """An image of which Pillow would lose values."""


class ImageReader(Reader):
    """Reads images of one page by Pillow.

    Samples of JPEG images are PNG images: JPEG would change their values.
    """

    @contextmanager
    def open(self, file: Path, name: str) -> Iterator[Content]:
        """Opens an image, which is decoded when its values are asked for."""
        with _opened(file, name) as image:
            bands = len(image.getbands())
            shape = (image.height, image.width, *([bands] if bands > 1 else []))
            array = Whole(shape, DTYPES[image.mode], lambda: np.asarray(image))
            yield Content(array, "YXS"[: len(shape)])

    def write(
        self, file: Path, array: np.ndarray, axes: str, *, like: Path | None, note: Note
    ) -> int:
        """Writes an image with the resolution of another; RGB of floats as a .npy file."""
        array = np.moveaxis(array, 0, -1) if axes == "CYX" else array
        if file.suffix == ".npy":
            np.save(file, array)
            return 0
        resolution: dict[str, Any] = {}
        if like is not None:
            with Image.open(like) as image:
                zoom = zooms("YX", array.shape[:2], "YX", (image.height, image.width))
                if dpi := image.info.get("dpi"):
                    resolution["dpi"] = (dpi[0] * zoom["X"], dpi[1] * zoom["Y"])
        Image.fromarray(np.ascontiguousarray(array)).save(file, **resolution)
        return 0

    def check(self, suffix: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Refuses samples that Pillow cannot write with this suffix."""
        suffix = self.suffix(suffix)
        dtypes = WRITTEN[suffix].get(shape[0], ()) if len(shape) == 3 else ()
        if dtype.name not in dtypes:
            raise UserError(
                f"samples of shape {list(shape)} and {dtype} cannot be written as {suffix} "
                "images; give the measurements as a .npy file"
            )

    def suffix(self, suffix: str) -> str:
        """Returns the suffix of samples of images with a suffix."""
        return {".jpg": ".png", ".ome.tif": ".tif"}.get(suffix, suffix)

    def moments_suffix(self, suffix: str, shape: tuple[int, ...]) -> str:
        """Returns .tif for grey images, and .npy for others: Pillow has no RGB of floats."""
        return ".tif" if shape[0] == 1 else ".npy"


@contextmanager
def _opened(file: Path, name: str) -> Iterator[Image.Image]:
    """Opens an image that loses nothing; every error in the scope is one sentence."""
    try:
        with warnings.catch_warnings(), Image.open(file, formats=("PNG", "JPEG", "TIFF")) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if lossy := _loss(image, file):
                further = ""
                if image.format == "TIFF" and TIFF.extra and not TIFF.extra.installed:
                    further = "; other TIFF files are read with pip install 'diffem[tiff]'"
                raise LossyImage(
                    f"{name} ({lossy}) would lose values: only single-page grey (8-bit, "
                    "16-bit, 32-bit, float) or 8-bit RGB images without alpha are read; convert "
                    f"it, or give a .npz file{further}"
                )
            yield image
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is too large ({error}); crop it") from error
    except Exception as error:  # decoders raise many types
        raise unreadable(name, error) from error


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
