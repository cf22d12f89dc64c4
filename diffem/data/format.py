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
from torch import Tensor

from diffem.data.cast import cast
from diffem.data.layout import Layout, joined
from diffem.data.reader import ARRAY, KNOWN, Note, Reader, reader_of
from diffem.data.stack import FileStack, Part
from diffem.runtime.errors import FULL, UserError
from diffem.runtime.progress import warn


@dataclass(frozen=True)
class Format:
    """The form of measurements in their files.

    Arguments:
        suffix: .npy, .npz, or the suffix of files of another known format.
        dtype: The name of y's dtype, as numpy has it; of complex numbers too.
        channel_axis: Whether y has an axis of channels, which grey images may lack.
        key: The name of the array in a file of several, `dataset.key`; None if it was not given.
        axes: The letters of the array's axes, `dataset.axes`; None if they were not given.
        dims: The number of spatial axes, `dataset.dims`; None if it was not given.
    """

    suffix: str
    dtype: str
    channel_axis: bool
    key: str | None = None
    axes: str | None = None
    dims: int | None = None

    @property
    def is_files(self) -> bool:
        """Whether each sample is a file of its own, not a row of an array."""
        return self.suffix in KNOWN and KNOWN[self.suffix] is not ARRAY

    @property
    def real(self) -> np.dtype:
        """The dtype of the measurements' real numbers, two of which are a complex one."""
        dtype = np.dtype(self.dtype)
        return np.finfo(dtype).dtype if dtype.kind == "c" else dtype

    def reader(self) -> Reader:
        """Returns the reader of such files.

        Raises:
            UserError: If its package is not installed.
        """
        return reader_of(self.suffix, f"{self.suffix} files", key=self.key)

    def check(self, shape: Sequence[int]) -> None:
        """Refuses samples that cannot be written in this form.

        Arguments:
            shape: The shape of a sample.

        Raises:
            UserError: If images of this shape and dtype cannot be written as such files.
        """
        if self.is_files:
            self.reader().check(self.suffix, tuple(shape), np.dtype(self.dtype))

    def values(self, x: np.ndarray) -> tuple[np.ndarray, int]:
        """Returns samples in the measurements' dtype, and how many values had to be clipped.

        Arguments:
            x: Samples in the data's units, float64.
        """
        return cast(x, self.real)

    def float_type(self) -> np.dtype:
        """Returns the type of means and standard deviations, which holds the samples' values.

        It is float32, which has 24 bits; float64 in arrays of types that have more.
        """
        narrow = self.is_files or np.can_cast(self.real, np.float32)
        return np.dtype(np.float32 if narrow else np.float64)

    def arranged(self, x: np.ndarray, shape: Sequence[int], *, real: bool = False) -> np.ndarray:
        """Returns samples (…, *shape) with the axes of the measurements in a .npy or .npz file.

        Those of complex measurements are complex if they have an even number of channels, half of
        which are real parts; grey images lose their axis of channels if the measurements have
        none.

        Arguments:
            x: Samples, or their means.
            shape: The shape of a sample.
            real: Whether they are real numbers, as standard deviations are.
        """
        dims, complex_numbers = len(shape), np.dtype(self.dtype).kind == "c" and len(shape) > 1
        if complex_numbers and not real and x.shape[-dims] % 2 == 0:
            x = joined(x, axis=-dims)
        grey = (dims == 3 or complex_numbers) and x.shape[-dims] == 1
        return x.squeeze(-dims) if grey and not self.channel_axis else x

    def of_both_parts(self, std: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Returns standard deviations (B, *shape) as those of complex numbers, if samples are.

        That of a complex number is the root of the variances of both parts, (B, C / 2, *S).
        """
        if np.dtype(self.dtype).kind == "c" and len(shape) > 1 and shape[0] % 2 == 0:
            return np.hypot(*np.split(std, 2, axis=-len(shape)))
        return std


class SampleWriter:
    """Writes samples of posteriors into a new folder, a few measurements at a time.

        files    samples/NAME_00.tif …, mean/NAME.tif, std/NAME.tif
        .npy     samples.npy, (N, n, *shape), mean.npy and std.npy, (N, *shape)
        .npz     samples.npz with samples, mean and std

    Of a file of measurements there is one of each sample, with the same axes, header and units,
    and as many entries as it has measurements. Samples have the dtype of the measurements; whole
    numbers are rounded, and clipped to the dtype's range with a warning. Mean and std are float32,
    in arrays float64 if the measurements have more than 24 bits. Of images that Pillow writes they
    are TIFF files if they are grey, and .npy files if not. Of one sample there are none. The
    folder appears when all is written:

        with SampleWriter(folder, format, shape, count=N, n=n) as writer:
            writer.write(samples)  # as often as it takes

    Large images are written one sample at a time, `writer.write_one`, and may differ in size.

    Arguments:
        folder: The folder; it must not exist, or be empty.
        format: The form of the measurements.
        shape: The shape of a sample, (C, *S) or (D,); of several sizes, that of the largest.
        count: The number N of measurements.
        n: The number of samples of each.
        like: The files of the measurements, or names alone, of one measurement each; None to
            number them.

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
        like: FileStack | Sequence[str] | None = None,
    ) -> None:
        format.check(shape)
        self.folder, self.format, self.shape = Path(folder), format, tuple(shape)
        self.count, self.n = count, n
        self.parts = ("samples", "mean", "std") if n > 1 else ("samples",)
        self.row = self.clipped = self.values = 0
        self.in_files = format.is_files or isinstance(like, FileStack)
        if self.in_files:
            self.files = SampleFiles(format, self.shape, like, n=n)

    def __enter__(self) -> Self:
        size = self.format.real.itemsize * self.n
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
        self.values += x.size
        held = {"samples": values}
        if self.n > 1:
            std = self.format.of_both_parts(x.std(axis=1, ddof=1), self.shape)
            moments = {"mean": x.mean(axis=1), "std": std}
            held |= {k: v.astype(self.format.float_type()) for k, v in moments.items()}
        with writing(self.folder):
            for part, array in held.items():
                if self.in_files:
                    self._write_files(part, array)
                else:
                    array = self.format.arranged(array, self.shape, real=part == "std")
                    append(self.temporary / f"{part}.npy", array, self.count)
        self.row += len(x)

    def write_one(self, samples: Iterable[Tensor]) -> None:
        """Writes the samples of the next measurement, of which one is in memory at a time.

        Arguments:
            samples: The n samples in the data's units, each (*shape); the sides may be others.

        Raises:
            UserError: If they cannot be written, or are not finite.
        """
        mean = square = np.zeros(())
        number = 0
        for number, sample in enumerate(samples, start=1):
            x = finite(sample)
            values, clipped = self.format.values(x)
            self.clipped += clipped
            self.values += x.size
            with writing(self.folder):
                self._write_part("samples", values, number - 1)
            del values
            if number == 1:
                mean, square = x.copy(), np.zeros_like(x)
            else:  # Welford (1962): sums of squares of large numbers would lose digits
                off = x - mean
                mean += off / number
                off *= x - mean
                square += off
        assert number == self.n and self.row < self.count
        if self.n > 1:
            square /= self.n - 1
            std = self.format.of_both_parts(np.sqrt(square, out=square), mean.shape)
            with writing(self.folder):
                self._write_part("mean", mean.astype(self.format.float_type()))
                self._write_part("std", std.astype(self.format.float_type()))
        self.row += 1

    def _write_part(self, part: str, x: np.ndarray, sample: int | None = None) -> None:
        """Writes the mean or the std of the next measurement, (*shape), or one of its samples.

        Arguments:
            part: The name of the part.
            x: What is written.
            sample: The number of the sample.
        """
        if self.in_files:
            self.clipped += self.files.write(self.temporary / part, self.row, x, sample)
            return
        array = self.format.arranged(x[None], x.shape, real=part == "std")
        count = (self.count, self.n) if part == "samples" else (self.count,)
        append(self.temporary / f"{part}.npy", array, *count)

    def _write_files(self, part: str, array: np.ndarray) -> None:
        """Writes the means or the stds of measurements, (B, …), or samples, (B, n, …)."""
        for i, one in enumerate(array, start=self.row):
            each = enumerate(one) if part == "samples" else [(None, one)]
            for sample, x in each:
                self.clipped += self.files.write(self.temporary / part, i, x, sample)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:  # noqa: ANN401
        if kind is None:
            assert self.row == self.count, f"{self.row} of {self.count} rows were written"
            if self.format.suffix == ".npz":
                with writing(self.folder):
                    pack(self.temporary / "samples.npz", self.parts)
            warn_of_clipped(self.clipped, self.values, self.format)
        self._scope.__exit__(kind, *rest)


class SampleFiles:
    """Files of samples, means and standard deviations, like the files of the measurements.

    Arguments:
        format: The form of the measurements, which are in files.
        shape: The shape of a sample.
        like: The files, as a `FileStack`; or the names of the measurements; None to number them.
        n: The number of samples of each measurement.

    Raises:
        UserError: If samples of this shape have other spatial axes than the files.
    """

    def __init__(
        self,
        format: Format,
        shape: tuple[int, ...],
        like: FileStack | Sequence[str] | None,
        *,
        n: int,
    ) -> None:
        self.digits = max(2, len(str(n - 1)))
        self.stack = like if isinstance(like, FileStack) else None
        self.names = None if isinstance(like, FileStack) else like
        self.plain = Part(
            Path(), format.reader(), Layout.of_samples(shape, np.dtype(format.dtype)), "",
            format.suffix,
        )  # fmt: skip
        if self.stack is not None:
            space, dims = self.stack.parts[0].layout.space, max(1, len(shape) - 1)
            if dims != len(space):
                raise UserError(
                    f"samples of shape {list(shape)} cannot be written like "
                    f"{self.stack.parts[0].file}, whose measurements have {len(space)} axes of "
                    "space; give them as a .npy file"
                )

    def write(self, folder: Path, row: int, values: np.ndarray, sample: int | None) -> int:
        """Writes a sample of a measurement, or the mean or standard deviation of all.

        Those of a file with several measurements are kept in a temporary file until all are there.

        Arguments:
            folder: The folder, named samples, mean or std.
            row: The number of the measurement.
            values: The sample, mean or standard deviation, (C, *S).
            sample: The number of the sample; None for a mean or a standard deviation.

        Returns:
            How many values of the file had to be clipped, if it is complete now.
        """
        folder.mkdir(exist_ok=True)
        part, number = self._part(row)
        if sample is None:
            suffix, name = part.reader.moments_suffix(part.suffix, values.shape), part.stem
            note = Note(f"posterior {folder.name}", is_std=folder.name == "std")
        else:
            suffix, name = part.reader.suffix(part.suffix), f"{part.stem}_{sample:0{self.digits}d}"
            note = Note(f"posterior sample {sample}", is_sample=True)
        file, count = folder / f"{name}{suffix}", part.layout.count
        values, held = values[None], folder / f".{file.name}.npy"
        if count > 1:
            append(held, values, count)
            if number < count - 1:
                return 0
            values = np.load(held, mmap_mode="r", allow_pickle=False)
        array, axes = part.layout.array(values)
        like = None if self.stack is None else part.file
        try:
            clipped = part.reader.write(file, array, axes, like=like, note=note)
        except (OSError, UserError):
            raise
        except Exception as error:  # the libraries raise many types on odd headers
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{file.name} cannot be written with the header of {part.file} ({reason}); give "
                "the measurements as a .npy file"
            ) from error
        if count > 1:
            held.unlink()
        return clipped

    def _part(self, row: int) -> tuple[Part, int]:
        """Returns the file of a measurement, and the measurement's number in it."""
        if self.stack is None:
            name = f"{row:05d}" if self.names is None else self.names[row]
            return self.plain._replace(stem=name), 0
        i = int(np.searchsorted(self.stack.starts, row, side="right")) - 1
        return self.stack.parts[i], row - self.stack.starts[i]


def write_generated(
    folder: str | Path,
    format: Format,
    shape: Sequence[int],
    chunks: Iterable[Tensor],
    *,
    count: int,
    name: str = "generated",
) -> None:
    """Writes images into a new folder.

    They are generated_00000.tif …, or generated.npy (.npz, .h5, .zarr) with all of them. The
    folder appears when all is written.

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
    size = 0 if format.suffix == ".png" else format.real.itemsize
    reader = format.reader() if format.is_files else None
    layout = Layout.of_samples(shape, np.dtype(format.dtype))
    note = Note("samples of the prior", is_sample=True)
    with new_folder(folder, size=count * math.prod(shape) * size) as temporary:
        for samples in chunks:
            values, outside = format.values(finite(samples))
            clipped += outside
            with writing(folder):
                if reader is None:
                    append(temporary / f"{name}.npy", format.arranged(values, shape), count)
                elif reader.holds_sets:
                    append(temporary / f".{name}.npy", values, count)
                else:
                    for i, image in enumerate(values, start=row):
                        file = temporary / f"{name}_{i:05d}{reader.suffix(format.suffix)}"
                        array, axes = layout.array(image[None])
                        reader.write(file, array, axes, like=None, note=note)
            row += len(values)
        assert row == count, f"{row} of {count} samples were written"
        with writing(folder):
            if format.suffix == ".npz":
                pack(temporary / f"{name}.npz", (name,))
            if reader is not None and reader.holds_sets:
                values = np.load(temporary / f".{name}.npy", mmap_mode="r", allow_pickle=False)
                array, axes = layout.of_many(count).array(values)
                file = temporary / f"{name}{format.suffix}"
                reader.write(file, array, axes, like=None, note=note)
                (temporary / f".{name}.npy").unlink()
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
                f"{folder} needs {size / 1e9:.2g} GB and {free / 1e9:.2g} GB are free; free some, "
                "or choose another disk"
            )
        yield temporary
        with writing(folder):
            os.replace(temporary, target)
    except UserError as error:
        if str(temporary) not in str(error):
            raise
        raise UserError(str(error).replace(str(temporary), str(folder))) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        with writing(folder):
            raise
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


def append(path: Path, rows: np.ndarray, *count: int) -> None:
    """Appends rows to a .npy file that is to hold `count` of them, or a grid of several axes."""
    rows = np.ascontiguousarray(rows)
    with path.open("ab") as file:
        if not file.tell():
            header = npy.header_data_from_array_1_0(rows)
            npy.write_array_header_1_0(file, {**header, "shape": (*count, *rows.shape[1:])})
        file.write(rows.data)


def pack(path: Path, parts: Sequence[str]) -> None:
    """Moves .npy files beside a .npz file into it."""
    with ZipFile(path, "w", ZIP_STORED) as archive:
        for part in parts:
            array = path.with_name(f"{part}.npy")
            archive.write(array, array.name)
            array.unlink()


def warn_of_clipped(clipped: int, total: int, format: Format) -> None:
    """Warns if values of samples were outside the range of the measurements' dtype."""
    if clipped:
        scaled = format.real.kind == "f" and format.is_files
        held = "the files' whole numbers" if scaled else format.dtype
        warn(
            f"{100 * clipped / total:.3g} % of the samples' values were outside the range of "
            f"{held} and were clipped to it; for all of them give the measurements as a "
            "float32 .npy file"
        )
