"""Measurements in files of any known format, of which one may hold several."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import NamedTuple

import numpy as np

from diffem.data.layout import Layout, Reading
from diffem.data.open_files import OpenFiles
from diffem.data.reader import CANONICAL, Content, Reader, reader_of, stem_of, suffix_of
from diffem.data.source import unreadable
from diffem.runtime.errors import UserError
from diffem.runtime.progress import progress_bar, warn

LONG = 2**13  # files of which opening takes seconds


class Part(NamedTuple):
    """A file of a stack."""

    file: Path
    reader: Reader
    """What reads and writes such files."""
    layout: Layout
    """How its array holds measurements."""
    stem: str
    """Its name without suffix."""
    suffix: str
    """Its suffix, in lower case and in one spelling."""


class FileStack:
    """Measurements in files, in the files' order; each is read when it is asked for.

    Files with several measurements stay open, those that were used last.

    Arguments:
        files: The files, with known suffixes.
        reading: Which array of a file is read, and how.
        key: The setting that names the files, as the sentences begin.
        limit: The number of measurements after which further files are left out; None for none.
        beside: The stack whose measurements these files belong to, in the same order: a file with
            one entry has it for all measurements of the other's file. None for measurements.
        alike: Whether they must be of one size; rows of several sizes are asked for one by one.

    Attributes:
        sliced: Whether there are volumes whose slices are files of their own; such a volume goes
            by the file of its first slice.

    Raises:
        UserError: If a file cannot be read without loss, holds another type or shape than the
            first, or another number of entries than the file that it belongs to, or a package is
            missing.
    """

    def __init__(
        self,
        files: Sequence[Path],
        reading: Reading,
        *,
        key: str,
        limit: int | None = None,
        beside: "FileStack | None" = None,
        alike: bool = True,
    ) -> None:
        self.reading, self.key, self.beside, self.alike = reading, key, beside, alike
        self.parts: list[Part] = []
        self.starts, self.groups = [0], list[str]()
        self.operators = list[np.ndarray | None]()
        self.holds_std = True
        self._opened = OpenFiles()
        self._readers: dict[str, Reader] = {}
        every, files = files, self._volumes(files) if reading.dims == 3 else files
        self.sliced = len(files) < len(every)
        long = len(files) >= LONG
        with progress_bar("measurements  open", len(files), "files", shown=long) as advance:
            for file in files:
                self._add(file)
                advance()
                if limit is not None and self.starts[-1] >= limit:
                    break

    def _volumes(self, files: Sequence[Path]) -> Sequence[Path]:
        """Returns the files that volumes begin with; all of them, but for slices of series.

        Raises:
            UserError: As the class.
        """
        long = len(files) >= LONG
        with progress_bar("measurements  sort", len(files), "files", shown=long) as advance:

            def checked() -> Iterator[Path]:
                for file in files:
                    self._check_file(file, reader)
                    yield file
                    advance()

            _, reader = self._reader(files[0])
            return reader.volumes(checked(), self.key)

    def _reader(self, file: Path) -> tuple[str, Reader]:
        """Returns the suffix of a file, in one spelling, and what reads it."""
        suffix = suffix_of(file) or ""
        suffix, name = CANONICAL.get(suffix, suffix), f"{self.key}: {file}"
        if suffix not in self._readers:
            self._readers[suffix] = reader_of(suffix, name, key=self.reading.key)
        return suffix, self._readers[suffix]

    def _check_file(self, file: Path, reader: Reader) -> None:
        """Refuses what is no file: a pipe would wait."""
        try:
            mode = file.stat().st_mode
        except OSError as error:
            raise unreadable(f"{self.key}: {file}", error) from error
        if not (S_ISREG(mode) or (S_ISDIR(mode) and reader.folders)):
            raise UserError(f"{self.key}: {file} is no file; move it elsewhere")

    def _add(self, file: Path) -> None:
        """Adds the measurements of a file.

        Raises:
            UserError: As the class.
        """
        name = f"{self.key}: {file}"
        suffix, reader = self._reader(file)
        with self._content(file, reader) as content:
            layout = self._layout(content, name)
            dtype = _dtype(content)
            stored = np.dtype(content.array.dtype)
            self.groups.append(content.group or str(file))
            self.operators.append(content.operator)
            self.holds_std &= content.std is not None
        if not self.parts:
            self._shape, self.dtype, self.stored = layout.shape, dtype, stored
        self._check(file, layout.shape, dtype)
        self.parts.append(Part(file, reader, layout, stem_of(file), suffix))
        count = layout.count
        if self.beside is not None:
            of = self.beside.parts[len(self.parts) - 1]
            if count not in (1, of.layout.count):
                raise UserError(
                    f"{name} holds {count} entries, and {of.file} {of.layout.count}; give one "
                    "for each, or one for all"
                )
            count = of.layout.count
        self.starts.append(self.starts[-1] + count)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, (N, C, *S); (N, D) for vectors. Of several sizes, with that of the first."""
        return self.starts[-1], *self._shape

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each measurement."""
        counts = np.diff(self.starts)
        return [p.layout.shape for p, n in zip(self.parts, counts, strict=True) for _ in range(n)]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns measurements, (n, C, *S), in their own dtype; each file is opened once.

        Raises:
            UserError: If a file is gone, damaged, or is no longer of the shape and type that it
                was.
        """
        return self.read(rows)

    def read(self, rows: np.ndarray, *, std: bool = False) -> np.ndarray:
        """Returns measurements, as `[rows]` does, or the standard deviation of their pixels.

        Arguments:
            rows: Their numbers, (n,).
            std: Whether the standard deviations are returned, which the files must hold.

        Raises:
            UserError: As for measurements.
        """
        rows = np.asarray(rows)
        which = np.searchsorted(self.starts, rows, side="right") - 1
        shape = self.parts[which[0]].layout.shape if len(rows) else self._shape
        dtype = np.result_type(self.dtype, np.float32) if std else self.dtype
        values = np.empty((len(rows), *shape), dtype)
        for i in np.unique(which):
            part = self.parts[i]
            with self._content(part.file, part.reader, keep=part.layout.count > 1) as content:
                layout = self._layout(content, f"{self.key}: {part.file}")
                self._check(part.file, layout.shape, _dtype(content), part.layout.shape)
                if layout.count != part.layout.count:
                    raise UserError(
                        f"{self.key}: {part.file} holds {layout.count} entries, and held "
                        f"{part.layout.count} before; put the earlier file back"
                    )
                if std:
                    assert content.std is not None
                    content = content._replace(array=content.std)
                for at in np.flatnonzero(which == i):
                    row = int(rows[at]) - self.starts[i] if layout.count > 1 else 0
                    values[at] = layout.measurement(_values(content, layout.index(row), dtype))
        return values

    def label(self, row: int) -> str:
        """Returns what the sentences call a measurement."""
        i = int(np.searchsorted(self.starts, row, side="right")) - 1
        number = f", measurement {row - self.starts[i]}" if self.parts[i].layout.count > 1 else ""
        return f"{self.key}: {self.parts[i].file}{number}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the measurements: their file's, with a number if it holds several."""
        return tuple(
            part.stem if part.layout.count == 1 else f"{part.stem}_{k:04d}"
            for part in self.parts
            for k in range(part.layout.count)
        )

    @property
    def group_of(self) -> np.ndarray:
        """The number of the file, or of what it is a part of, of each measurement, (N,)."""
        _, number = np.unique(self.groups, return_inverse=True)
        return np.repeat(number, np.diff(self.starts))

    @contextmanager
    def _content(self, file: Path, reader: Reader, *, keep: bool = False) -> Iterator[Content]:
        """Opens a file, and may keep it open; every error in the scope is one sentence."""
        name = f"{self.key}: {file}"
        try:
            self._check_file(file, reader)
            if keep:
                yield self._opened.content(file, reader.open(file, name))
                return
            with reader.open(file, name) as content:
                yield content
        except UserError:
            raise
        except Exception as error:  # the libraries raise many types
            raise unreadable(name, error) from error

    def _layout(self, content: Content, name: str) -> Layout:
        """Returns how the array of an open file holds measurements."""
        array, reading = content.array, self.reading
        dtype = np.dtype(array.dtype)
        if dtype.kind not in "buifc":
            raise UserError(f"{name} must hold numbers, got {dtype}; convert it")
        axes = reading.axes or content.axes
        if self.beside is not None and len(axes) != len(array.shape):  # a mask of all channels
            axes = content.axes
        return Layout.of(axes, array.shape, dtype, dims=reading.dims, name=name)

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
                f"{self.parts[0].file.name} is {self.dtype} of shape {list(self._shape)}; all "
                f"measurements {advice}"
            )


class FileMasks(FileStack):
    """Files that say where something was measured: 1 in place of what is not zero there."""

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns 0 or 1, (n, C, *S), in the files' own dtype; NaN and infinity stay."""
        values = super().__getitem__(rows)
        return np.where((values != 0) & np.isfinite(values), values.dtype.type(1), values)


class FileErrors:
    """The standard deviation of each pixel's noise that files of measurements hold themselves.

    Arguments:
        stack: The measurements.
    """

    def __init__(self, stack: FileStack) -> None:
        self.stack, self.said = stack, False
        self.dtype = np.result_type(stack.dtype, np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, (N, C, *S)."""
        return self.stack.shape

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each."""
        return self.stack.shapes

    def __len__(self) -> int:
        return len(self.stack)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns the standard deviations of rows, (n, C, *S); NaN where nothing was measured."""
        std = self.stack.read(rows, std=True)
        return np.where(np.isfinite(std), std, np.nan)

    def say_unused(self, channel: object) -> None:
        """Warns, once, that a channel does not use them."""
        if not self.said:
            self.said = True
            warn(
                f"{self.stack.label(0)} has the noise of each pixel in ERR, which {channel} does "
                "not use: corruption.noise says what the noise is; corruption=weighting uses it"
            )


class FileValues:
    """Values that all measurements of a file share, such as a mask, as rows.

    Arguments:
        values: The values of each file, each (*P).
        counts: The number of measurements of each file.
    """

    def __init__(self, values: Sequence[np.ndarray], counts: Sequence[int]) -> None:
        self.values = values
        self.file_of = np.repeat(np.arange(len(counts)), counts)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, (N, *P)."""
        return len(self.file_of), *self.values[0].shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values."""
        return self.values[0].dtype

    def __len__(self) -> int:
        return len(self.file_of)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns the values of rows, (n, *P)."""
        return np.stack([self.values[i] for i in self.file_of[rows]])


def _dtype(content: Content) -> np.dtype:
    """Returns the dtype of the real numbers that measurements become, in native byte order."""
    dtype = np.dtype(content.array.dtype).newbyteorder("=")
    if dtype.kind == "c":
        return np.finfo(dtype).dtype
    if content.missing is not None and dtype.kind != "f":  # NaN needs a float that holds the rest
        return np.result_type(dtype, np.float32)
    return dtype


def _values(content: Content, index: tuple[int | slice, ...], dtype: np.dtype) -> np.ndarray:
    """Returns the values at an index, NaN where nothing was measured."""
    values = np.asarray(content.array[index])
    if content.missing is not None:
        values = values.astype(dtype)
        values[np.asarray(content.missing[index]) != 0] = np.nan
    return values
