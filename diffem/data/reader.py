"""Readers: one a file format, chosen by the suffix of a file in one table.

A reader opens a file as one array with named axes, and writes arrays into files of the same form
with the header of another. Its module imports the library that owns the format, and is itself
imported when a file of the format is used.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from diffem.runtime.errors import UserError
from diffem.runtime.extras import Extra, check_installed


class Sliceable(Protocol):
    """An array of which parts are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        ...

    @property
    def dtype(self) -> Any:  # noqa: ANN401 - each library has its own class
        """The dtype."""
        ...

    def __getitem__(self, index: Any, /) -> Any:  # noqa: ANN401
        """Returns the part at an index, one whole number or full slice an axis."""
        ...


T = TypeVar("T", bound=Sliceable)


class Content(NamedTuple):
    """What an open file holds."""

    array: Sliceable
    """The measurements, in the file's own axes and the data's units; its dtype is the one that
    samples are written in."""
    axes: str
    """A letter for each axis, see `Layout`."""
    missing: Sliceable | None = None
    """Where nothing was measured: not zero, of the array's shape."""
    operator: np.ndarray | None = None
    """The operator's parameters φ of the file's measurements, which all share them, (*P)."""
    std: Sliceable | None = None
    """The standard deviation of the noise of each number, of the array's shape."""
    group: str | None = None
    """The name of what the file is a part of, such as a series of slices; None for itself."""


class Note(NamedTuple):
    """What a file that is written holds."""

    text: str
    """As its header says it: "posterior sample 3"."""
    is_sample: bool = False
    """Whether it is samples, whose values are of the scaling that the measurements' file has."""
    is_std: bool = False
    """Whether it is standard deviations."""


class Whole:
    """An array that a library reads as a whole, when a part of it is asked for.

    Arguments:
        shape: Its shape.
        dtype: Its dtype.
        load: Reads it.
    """

    def __init__(
        self, shape: Sequence[int], dtype: DTypeLike, load: Callable[[], np.ndarray]
    ) -> None:
        self.shape, self.dtype, self.load = tuple(shape), np.dtype(dtype), load

    def __getitem__(self, index: Any) -> np.ndarray:  # noqa: ANN401
        """Returns the part at an index."""
        return self.load()[index]


class Reader(ABC):
    """Reads and writes the files of one format.

    Arguments:
        key: The name of the array in a file of several; None for the one that there is.

    Attributes:
        keyed: Whether its files may hold several arrays.
        holds_sets: Whether a file holds a set of measurements, which samples of a prior are too.
        folders: Whether its files are folders.
    """

    keyed: ClassVar[bool] = False
    holds_sets: ClassVar[bool] = False
    folders: ClassVar[bool] = False

    def __init__(self, key: str | None = None) -> None:
        self.key = key

    @abstractmethod
    def open(self, file: Path, name: str) -> AbstractContextManager[Content]:
        """Opens a file; its header is read, its values when they are asked for.

        Arguments:
            file: The file.
            name: What the sentences call it.

        Raises:
            UserError: If what it holds cannot be read without loss.
            Exception: Of any type, if it is damaged.
        """

    def volumes(self, files: Iterable[Path], key: str) -> list[Path]:
        """Returns the files that volumes begin with, in the order of the files.

        Each file is a volume, unless the format has slices of volumes in files of their own.

        Arguments:
            files: The files of a folder.
            key: The setting that names them, as the sentences begin.

        Raises:
            UserError: If slices cannot be put together.
        """
        return list(files)

    @abstractmethod
    def write(
        self, file: Path, array: np.ndarray, axes: str, *, like: Path | None, note: Note
    ) -> int:
        """Writes a file with the header of another.

        Arguments:
            file: The new file, of a suffix that `suffix` or `moments_suffix` gives.
            array: The values, in the data's units: of the dtype of the measurements, or float32
                for means and standard deviations.
            axes: The letters of the array's axes, in the order of those of the other file.
            like: The file that the header is taken from; None for a plain one.
            note: What is written: a sample, a mean or a standard deviation.

        Returns:
            How many values were outside the range of the numbers that the file holds, and were
            clipped to it; those of `array` itself are in the range of its dtype.
        """

    def check(self, suffix: str, shape: tuple[int, ...], dtype: np.dtype) -> None:  # noqa: B027
        """Refuses samples that cannot be written in this format.

        Arguments:
            suffix: The suffix of their files.
            shape: The shape of a sample, (C, *S).
            dtype: The dtype of the measurements.

        Raises:
            UserError: If they cannot.
        """

    def suffix(self, suffix: str) -> str:
        """Returns the suffix of files of samples of measurements that have a suffix."""
        return suffix

    def moments_suffix(self, suffix: str, shape: tuple[int, ...]) -> str:
        """Returns the suffix of files of means and standard deviations of samples of a shape."""
        return self.suffix(suffix)


class Known(NamedTuple):
    """The files of a suffix."""

    reader: str
    """The full name of the class that reads them."""
    extra: Extra | None = None
    """The package that it needs."""


IMAGE = Known("diffem.data.images.ImageReader")
TIFF = Known("diffem.data.tiff.TiffReader", Extra("tifffile", "tifffile", "tiff"))
HDF5 = Known("diffem.data.hdf5.HDF5Reader", Extra("h5py", "h5py", "hdf5"))
FITS = Known("diffem.data.fits.FitsReader", Extra("astropy", "astropy", "fits"))
NIFTI = Known("diffem.data.nifti.NiftiReader", Extra("nibabel", "nibabel", "nifti"))
DICOM = Known("diffem.data.dicom.DicomReader", Extra("pydicom", "pydicom", "dicom"))
MRC = Known("diffem.data.mrc.MrcReader", Extra("mrcfile", "mrcfile", "mrc"))
ZARR = Known("diffem.data.ome_zarr.ZarrReader", Extra("zarr", "zarr", "zarr"))
ARRAY = Known("diffem.data.npy.NpyReader")
KNOWN: Mapping[str, Known] = {  # by suffix, in lower case; of two that fit the longer one is meant
    ".png": IMAGE,
    ".tif": TIFF,
    ".tiff": TIFF,
    ".ome.tif": TIFF,
    ".ome.tiff": TIFF,
    ".jpg": IMAGE,
    ".jpeg": IMAGE,
    ".h5": HDF5,
    ".hdf5": HDF5,
    ".fits": FITS,
    ".fit": FITS,
    ".fts": FITS,
    ".fits.gz": FITS,
    ".nii": NIFTI,
    ".nii.gz": NIFTI,
    ".dcm": DICOM,
    ".mrc": MRC,
    ".mrcs": MRC,
    ".zarr": ZARR,
    ".ome.zarr": ZARR,
    ".npy": ARRAY,  # in folders
}
CANONICAL = {".tiff": ".tif", ".ome.tiff": ".ome.tif", ".jpeg": ".jpg", ".hdf5": ".h5"}


def suffix_of(file: Path) -> str | None:
    """Returns the known suffix of a file's name, in lower case; None if it has none."""
    name = file.name.lower()
    found = [s for s in KNOWN if name.endswith(s) and name != s]
    return max(found, key=len, default=None)


def stem_of(file: Path) -> str:
    """Returns a file's name without its known suffix."""
    return file.name[: -len(suffix_of(file) or "")] or file.name


def reader_of(suffix: str, name: str, *, key: str | None = None) -> Reader:
    """Returns the reader of the files of a suffix.

    Arguments:
        suffix: A suffix of the table.
        name: What the sentences call a file of it.
        key: `dataset.key`.

    Raises:
        UserError: If its package is not installed, or its files hold one array and there is a key.
    """
    known = KNOWN[suffix]
    if known is TIFF and known.extra and not known.extra.installed:
        known = IMAGE  # Pillow reads some of them
    if known.extra:
        check_installed(name, known.extra)
    module, _, cls = known.reader.rpartition(".")
    reader: type[Reader] = getattr(import_module(module), cls)
    if key is not None and not reader.keyed:
        raise UserError(f"dataset.key={key} has no effect on {suffix} files; leave it out")
    return reader(key)


def choose(arrays: Mapping[str, T], key: str | None, name: str) -> T:
    """Returns the array that is meant, of a file of several.

    Arguments:
        arrays: The arrays by their names.
        key: `dataset.key`; None for the one that there is.
        name: What the sentence calls the file.

    Raises:
        UserError: If there is none of the name, or several and no name was given.
    """
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if key is not None and key.strip("/") in arrays:
        return arrays[key.strip("/")]
    if not arrays:
        raise UserError(f"{name} holds no array of numbers; give another file")
    there = ", ".join(f"{path} {list(a.shape)} {a.dtype}" for path, a in arrays.items())
    found = f"has no array {key}" if key else "holds several arrays"
    raise UserError(f"{name} {found}; dataset.key can be {there}")
