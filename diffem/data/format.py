"""Samples in the form of the measurements: their file type, dtype, axes and units."""

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn

IMAGES = {".png": {1: ("uint8", "uint16"), 3: ("uint8",)},
          ".tif": {1: ("uint8", "uint16", "int32", "float32"), 3: ("uint8",)}}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """The form of measurements in their files.

    Arguments:
        suffix: .npy, .npz, .png or .tif.
        dtype: The name of y's dtype, as numpy has it.
        channel_axis: Whether y has an axis of channels, which grey images may lack.
    """

    suffix: str
    dtype: str
    channel_axis: bool

    def check(self, shape: Sequence[int]) -> None:
        """Refuses samples that cannot be written in this form.

        Arguments:
            shape: The shape of a sample.

        Raises:
            UserError: If images of this shape and dtype cannot be written as such files.
        """
        if self.suffix in IMAGES:
            dtypes = IMAGES[self.suffix].get(shape[0], ()) if len(shape) == 3 else ()
            if self.dtype not in dtypes:
                raise UserError(
                    f"samples of shape {list(shape)} and {self.dtype} cannot be written as "
                    f"{self.suffix} images; give the measurements as a .npy file"
                )

    def values(self, x: np.ndarray) -> tuple[np.ndarray, int]:
        """Returns samples in the measurements' dtype, and how many values had to be clipped.

        Arguments:
            x: Samples in the data's units, float64.
        """
        dtype = np.dtype(self.dtype)
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        low, high = float(limits.min), float(limits.max)
        if dtype.kind != "f":
            x = x.round()
        outside = int(((x < low) | (x > high)).sum())
        # The largest number of 64 bits rounds up to a float64 that 64 bits do not hold.
        rounded_up = dtype.kind != "f" and int(high) > limits.max
        largest = np.nextafter(high, 0) if rounded_up else high
        values = x.clip(low, largest).astype(dtype)
        values[x >= high] = limits.max
        return values, outside

    def float_type(self) -> np.dtype:
        """Returns the type of means and standard deviations, which holds the samples' values.

        It is float32, which has 24 bits; float64 in arrays of types that have more. (Pillow has
        no images of float64.)
        """
        narrow = self.suffix in IMAGES or np.can_cast(self.dtype, np.float32)
        return np.dtype(np.float32 if narrow else np.float64)

    def axes(self, x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Returns samples (…, *shape) with the axes of the measurements.

        Grey ones lose their axis of channels if the measurements have none; images in files have
        their channels last.
        """
        if len(shape) != 3:
            return x
        if shape[0] == 1 and not self.channel_axis:
            return x[..., 0, :, :]
        return np.moveaxis(x, -3, -1) if self.suffix in IMAGES else x


class SampleWriter:
    """Writes samples of posteriors into a new folder, a few measurements at a time.

        images   samples/NAME_00.tif …, mean/NAME.tif, std/NAME.tif
        .npy     samples.npy, (N, n, *shape), mean.npy and std.npy, (N, *shape)
        .npz     samples.npz with samples, mean and std

    Samples have the dtype of the measurements; whole numbers are rounded, and clipped to the
    dtype's range with a warning. Mean and std are float32, in arrays float64 if the measurements
    have more than 24 bits: TIFF files for grey images, .npy files, (H, W, 3), for RGB ones. Of one
    sample there are none. The folder appears when all is written:

        with SampleWriter(folder, format, shape, count=N, n=n) as writer:
            writer.write(samples)  # as often as it takes

    Arguments:
        folder: The folder; it must not exist, or be empty.
        format: The form of the measurements.
        shape: The shape of a sample, (C, *S) or (D,).
        count: The number N of measurements.
        n: The number of samples of each.
        names: The names of the images without suffix; None to number them.

    Raises:
        UserError: If the folder is not empty or cannot be written, the disk has too little space,
            or such samples cannot be written in this form.
    """

    def __init__(
        self,
        folder: str | Path,
        format: Format,
        shape: Sequence[int],
        *,
        count: int,
        n: int,
        names: Sequence[str] | None = None,
    ) -> None:
        format.check(shape)
        self.folder, self.format, self.shape = Path(folder), format, tuple(shape)
        self.count, self.n = count, n
        self.names = names
        self.parts = ("samples", "mean", "std") if n > 1 else ("samples",)
        self.row = self.clipped = 0

    def __enter__(self) -> Self:
        size = np.dtype(self.format.dtype).itemsize * self.n
        size += self.format.float_type().itemsize * (len(self.parts) - 1)
        if self.format.suffix == ".png":  # which compresses
            size = 0
        self._scope = new_folder(self.folder, size=self.count * math.prod(self.shape) * size)
        self.temporary = self._scope.__enter__()
        return self

    def write(self, samples: Tensor) -> None:
        """Writes the samples of the next measurements.

        Arguments:
            samples: Samples in the data's units, (B, n, *shape).

        Raises:
            UserError: If they cannot be written, or are not finite.
        """
        x = finite(samples)
        assert x.shape[1:] == (self.n, *self.shape) and self.row + len(x) <= self.count
        values, clipped = self.format.values(x)
        self.clipped += clipped
        held = {"samples": values}
        if self.n > 1:
            held |= {"mean": x.mean(axis=1), "std": x.std(axis=1, ddof=1)}
        with writing(self.folder):
            for part, array in held.items():
                array = self.format.axes(array, self.shape)
                array = array if part == "samples" else array.astype(self.format.float_type())
                if self.format.suffix in IMAGES:
                    self._write_images(part, array)
                else:
                    append(self.temporary / f"{part}.npy", array, self.count)
        self.row += len(x)

    def _write_images(self, part: str, images: np.ndarray) -> None:
        """Writes the images, (B, …), of one part; samples are (B, n, …)."""
        folder = self.temporary / part
        folder.mkdir(exist_ok=True)
        for i, image in enumerate(images, start=self.row):
            name = f"{i:05d}" if self.names is None else self.names[i]
            if part == "samples":
                digits = max(2, len(str(self.n - 1)))
                for s, sample in enumerate(image):
                    save_image(folder / f"{name}_{s:0{digits}d}{self.format.suffix}", sample)
            elif image.ndim == 2:
                save_image(folder / f"{name}.tif", image)
            else:  # Pillow has no RGB of floats
                np.save(folder / f"{name}.npy", image)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:  # noqa: ANN401
        if kind is None:
            assert self.row == self.count, f"{self.row} of {self.count} rows were written"
            if self.format.suffix == ".npz":
                with writing(self.folder):
                    pack(self.temporary / "samples.npz", self.parts)
            warn_of_clipped(self.clipped, self.count * self.n * math.prod(self.shape), self.format)
        self._scope.__exit__(kind, *rest)


def write_generated(
    folder: str | Path,
    format: Format,
    shape: Sequence[int],
    chunks: Iterable[Tensor],
    *,
    count: int,
    name: str = "generated",
) -> None:
    """Writes images into a new folder: generated_00000.tif …, or generated.npy (.npz).

    The folder appears when all is written.

    Arguments:
        folder: The folder; it must not exist, or be empty.
        format: The form of the measurements, which the samples get.
        shape: The shape of a sample.
        chunks: Samples in the data's units, each (B, *shape).
        count: The number of all samples.
        name: What the files are called.

    Raises:
        UserError: If the folder is not empty or cannot be written, the disk has too little space,
            or such samples cannot be written in this form.
    """
    format.check(shape)
    folder, row, clipped = Path(folder), 0, 0
    size = 0 if format.suffix == ".png" else np.dtype(format.dtype).itemsize
    with new_folder(folder, size=count * math.prod(shape) * size) as temporary:
        for samples in chunks:
            values, outside = format.values(finite(samples))
            values, clipped = format.axes(values, shape), clipped + outside
            with writing(folder):
                if format.suffix in IMAGES:
                    for i, image in enumerate(values, start=row):
                        save_image(temporary / f"{name}_{i:05d}{format.suffix}", image)
                else:
                    append(temporary / f"{name}.npy", values, count)
            row += len(values)
        assert row == count, f"{row} of {count} samples were written"
        if format.suffix == ".npz":
            with writing(folder):
                pack(temporary / f"{name}.npz", (name,))
        warn_of_clipped(clipped, count * math.prod(shape), format)


@contextmanager
def new_folder(folder: Path, *, size: int = 0) -> Iterator[Path]:
    """Opens a scope that fills a folder, under a temporary name that is given up at the end.

    A process that is killed leaves nothing under the folder's own name, and one that fails
    nothing at all, but for the folders that it is in.

    Arguments:
        folder: The folder; a link is followed.
        size: The number of bytes that it will hold.

    Raises:
        UserError: If there is such a folder with content, it cannot be made, or the disk has less
            space.
    """
    with writing(folder):
        taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
        target = folder.resolve()
    if taken:
        raise UserError(f"{folder} exists and is not empty; give another folder, or remove it")
    if target.is_mount():  # which cannot be replaced by the folder of the temporary name
        raise UserError(f"{folder} is a mount point; give a folder in it, {folder / 'NAME'}")
    temporary = target.with_name(f".{target.name[:100]}.tmp{os.getpid()}")
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
            free = shutil.disk_usage(temporary).free
        if size > free:
            raise UserError(
                f"{folder} needs {size / 1e9:.2g} GB and {free / 1e9:.2g} GB are free; choose "
                "another disk, or draw fewer samples"
            )
        yield temporary
        with writing(folder):
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Opens a scope in which a failed write is one sentence that names the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}), and nothing was kept; make "
            "room, or give another folder"
        ) from error


def finite(samples: Tensor) -> np.ndarray:
    """Returns samples as float64 numbers on the CPU.

    Raises:
        UserError: If one is not finite.
    """
    x = samples.detach().cpu().double().numpy()
    if not np.isfinite(x).all():
        raise UserError(
            "samples hold NaN or infinity, and nothing was kept; give measurements like those of "
            "the training, or train with another sampler or more sampler.steps"
        )
    return x


def append(path: Path, rows: np.ndarray, count: int) -> None:
    """Appends rows to a .npy file that is to hold `count` of them."""
    rows = np.ascontiguousarray(rows)
    with path.open("ab") as file:
        if not file.tell():
            header = npy.header_data_from_array_1_0(rows)
            npy.write_array_header_1_0(file, {**header, "shape": (count, *rows.shape[1:])})
        file.write(rows.data)


def pack(path: Path, parts: Sequence[str]) -> None:
    """Moves .npy files beside a .npz file into it."""
    with ZipFile(path, "w", ZIP_STORED) as archive:
        for part in parts:
            array = path.with_name(f"{part}.npy")
            archive.write(array, array.name)
            array.unlink()


def save_image(path: Path, image: np.ndarray) -> None:
    """Writes an image, (H, W) or (H, W, 3), of a dtype that Pillow has."""
    Image.fromarray(np.ascontiguousarray(image)).save(path)


def warn_of_clipped(clipped: int, total: int, format: Format) -> None:
    """Warns if values of samples were outside the range of the measurements' dtype."""
    if clipped:
        warn(
            f"{100 * clipped / total:.3g} % of the samples' values were outside the range of "
            f"{format.dtype} and were clipped to it; for all of them give the measurements as a "
            "float32 .npy file"
        )
