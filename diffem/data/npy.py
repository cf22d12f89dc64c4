"""Arrays in .npy and .npz files, whose rows are read when they are asked for."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.lib import format as npy

from diffem.data.layout import UNNAMED
from diffem.data.reader import Content, Note, Reader, Whole
from diffem.data.source import unreadable
from diffem.runtime.errors import UserError

BLOCK = 2**20  # bytes that a checksum is computed of at once


class Rows(Protocol):
    """Rows in the data's own dtype: an array in memory, or what reads the rows asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, (N, …)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The type of the numbers."""
        ...

    def __len__(self) -> int:
        """Returns N."""
        ...

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Returns a copy of rows, (n, …); they are whole numbers, (n,)."""
        ...


class ArrayFile:
    """An array in a .npy file, or in a .npz file that does not compress it.

    Rows are read, not memory-mapped: pages of a map that were touched once count as memory of the
    process until the kernel needs them, and touching one of a file that was cut short in the
    meantime kills the process (SIGBUS) where a read can say so.

    Arguments:
        path: The file.
        name: What the sentences call it.
        offset: Where the array's header begins, in bytes.

    Raises:
        ValueError: If there is no array of plain numbers, or the file ends before it does.
        OSError: If the file cannot be read.
    """

    def __init__(self, path: Path, name: str, *, offset: int = 0) -> None:
        self.path, self.name = path, name
        with path.open("rb") as file:
            file.seek(offset)
            self.shape, self.fortran, self.dtype = _read_header(file)
            self.offset = file.tell()
            if os.fstat(file.fileno()).st_size < self.offset + self.row_bytes * len(self):
                raise ValueError(f"it ends before its {len(self)} rows do")

    @property
    def row_bytes(self) -> int:
        """The size of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows, (n, …), in the file's dtype.

        Raises:
            UserError: If the file is gone, or shorter than it was.
        """
        try:
            if self.fortran:  # a row's numbers are far apart: map the file, for this call alone
                held = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, "F")
                return held[rows]
            with self.path.open("rb") as file:
                parts = [self._read(file, run) for run in _runs(np.asarray(rows))]
        except (OSError, ValueError) as error:
            raise unreadable(self.name, error) from error
        return np.concatenate(parts).reshape(len(rows), *self.shape[1:])

    def _read(self, file: BinaryIO, run: np.ndarray) -> np.ndarray:
        """Returns the numbers of consecutive rows."""
        if not len(run):
            return np.empty(0, self.dtype)
        file.seek(self.offset + int(run[0]) * self.row_bytes)
        count = len(run) * math.prod(self.shape[1:])
        numbers = np.fromfile(file, self.dtype, count)
        if len(numbers) != count:
            raise ValueError(f"it ends before row {run[-1]} does")
        return numbers


def _runs(rows: np.ndarray) -> list[np.ndarray]:
    """Returns rows, split where they are not consecutive."""
    return np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns the shape, whether columns come first, and the dtype that a header announces."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format has the version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or not shape:
        raise ValueError(f"it is {dtype} of shape {list(shape)}, not numbers with N rows")
    return shape, fortran and len(shape) > 1, dtype


def open_npy(path: Path, name: str) -> ArrayFile:
    """Returns the array of a .npy file.

    Arguments:
        path: The file.
        name: What the sentences call it.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return ArrayFile(path, name)
    except (OSError, ValueError, EOFError) as error:
        raise unreadable(name, error) from error


def open_npz(path: Path, name: str, known: Sequence[str]) -> dict[str, Rows]:
    """Returns the arrays of a .npz file by their names; those that it compresses, in memory.

    Arguments:
        path: The file.
        name: What the sentences call it.
        known: The name that it must hold, and those that it may hold.

    Raises:
        UserError: If it cannot be read, lacks the first name, or holds another one.
    """
    found: dict[str, Rows] = {}
    try:
        with ZipFile(path) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            if known[0] in members and members.keys() <= set(known):
                for key, member in members.items():
                    if member.compress_type == ZIP_STORED:
                        offset = _data_offset(path, member.header_offset)
                        found[key] = ArrayFile(path, name, offset=offset)
                    else:
                        with archive.open(member) as file:
                            found[key] = npy.read_array(file, allow_pickle=False)
                return found
    except (OSError, ValueError, EOFError, BadZipFile, NotImplementedError) as error:
        raise unreadable(name, error) from error
    raise UserError(
        f"{name} must hold {known[0]}, and may hold {', '.join(known[1:-1])} and {known[-1]}; it "
        f"holds {', '.join(sorted(members))}"
    )


def _data_offset(path: Path, header: int) -> int:
    """Returns where a member of a zip file begins: behind its local header (APPNOTE 4.3.7)."""
    with path.open("rb") as file:
        file.seek(header)
        fixed = file.read(30)
        if len(fixed) < 30 or fixed[:4] != b"PK\3\4":
            raise BadZipFile("a member's header is damaged")
        return header + 30 + sum(int.from_bytes(fixed[i : i + 2], "little") for i in (26, 28))


def verify_npz(path: Path, name: str) -> None:
    """Compares the arrays of a .npz file with the checksums that it holds.

    Raises:
        UserError: If one differs.
    """
    try:
        with ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    while file.read(BLOCK):
                        pass
    except (OSError, BadZipFile) as error:
        raise unreadable(name, error) from error


class ComplexRows:
    """Complex rows as real ones with channels: the real parts of all, and then the imaginary ones.

    Arguments:
        rows: Complex numbers, (N, C, *S); (N, H, W) and (N, L) where there is one channel.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        channels = rows.shape[1:2] if len(rows.shape) > 3 else (1,)
        self.shape = (len(rows), 2 * channels[0], *rows.shape[1 + (len(rows.shape) > 3) :])
        self.dtype = np.finfo(rows.dtype).dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows, (n, 2 C, *S), in their own precision."""
        values = self.rows[rows]
        parts = np.stack([np.real(values), np.imag(values)], axis=1)
        return parts.reshape(len(values), *self.shape[1:])


class NpyReader(Reader):
    """Reads .npy files of a folder, each of which holds one measurement.

    They are (H, W) or (C, H, W) or (C, D, H, W), and vectors (D,), unless `dataset.axes` says
    otherwise.
    """

    @contextmanager
    def open(self, file: Path, name: str) -> Iterator[Content]:
        """Opens a file; its header is read."""
        with file.open("rb") as content:
            shape, _, dtype = _read_header(content)
        axes = UNNAMED[len(shape) + 1][1:] if len(shape) < 5 else "?" * len(shape)
        yield Content(Whole(shape, dtype, lambda: np.load(file, allow_pickle=False)), axes)

    def write(
        self, file: Path, array: np.ndarray, axes: str, *, like: Path | None, note: Note
    ) -> int:
        """Writes an array."""
        np.save(file, array)
        return 0
