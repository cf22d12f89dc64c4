"""HDF5 files, by h5py; those of fastMRI with their mask."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from diffem.data.layout import UNNAMED
from diffem.data.reader import Content, Note, Reader, choose
from diffem.runtime.errors import UserError

KSPACE, MASK = "kspace", "mask"
SLICES = {3: "IYX", 4: "ICYX"}  # fastMRI's axes: slices, coils, rows, columns
RECONSTRUCTION = "reconstruction"


class HDF5Reader(Reader):
    """Reads an array of an HDF5 file, `dataset.key`.

    Without a key it is `kspace`, or the one that there is. Its axes are those of an array in a
    .npy file, unless the labels of its dimensions name them. A `mask` beside `kspace`, as fastMRI
    has it, of columns or of pixels, is the operator's parameter of all slices.
    """

    keyed = True
    holds_sets = True

    def __init__(self, key: str | None = None) -> None:
        super().__init__(key)
        self.path = ""

    @contextmanager
    def open(self, file: Path, name: str) -> Iterator[Content]:
        """Opens a file; rows are read when they are asked for."""
        with h5py.File(file, "r") as held:
            array, operator = self._array(held, name), None
            path, _, last = str(array.name).rpartition("/")
            if last == KSPACE and f"{path}/{MASK}" in held:
                operator = _mask(np.asarray(held[f"{path}/{MASK}"]), array.shape[-2:], name)
            yield Content(array, _axes(array), operator=operator)

    def write(
        self, file: Path, array: np.ndarray, axes: str, *, like: Path | None, note: Note
    ) -> int:
        """Writes an array under its name, with the attributes and single values of a file.

        Samples of k-space are named `reconstruction`.
        """
        with h5py.File(file, "w") as new:
            if like is None:
                new.create_dataset(self.key or "generated", data=array)
                return 0
            with h5py.File(like, "r") as held:
                old = self._array(held, str(like))
                _copy_attributes(held, new)
                held.visititems(lambda name, part: _copy_values(name, part, new))
                path = str(old.name).strip("/")
                if path.rpartition("/")[2] == KSPACE:
                    path = path[: -len(KSPACE)] + RECONSTRUCTION
                same = array.shape == old.shape
                chunks = {"chunks": old.chunks} if same and old.chunks else {}
                made = new.create_dataset(path, data=array, compression=old.compression, **chunks)
                _copy_attributes(old, made)
                for i, axis in enumerate(old.dims):
                    if axis.label and len(made.shape) == len(old.shape):
                        made.dims[i].label = axis.label
        return 0

    def _array(self, held: h5py.File, name: str) -> h5py.Dataset:
        """Returns the array that is meant.

        Raises:
            UserError: If there is none of the name, or several and no name was given.
        """
        known = held.get(self.path) if self.path else None  # of the file before
        if isinstance(known, h5py.Dataset) and known.file.filename == held.filename:
            return known
        found: dict[str, h5py.Dataset] = {}

        def add(path: str, part: object) -> None:
            if isinstance(part, h5py.Dataset) and part.ndim > 1 and part.dtype.kind in "buifc":
                found[path] = part

        held.visititems(add)
        chosen = choose(found, self.key or (KSPACE if KSPACE in found else None), name)
        self.path = str(chosen.name)
        return chosen


def _axes(array: h5py.Dataset) -> str:
    """Returns the letters of an array's axes."""
    labels = "".join(str(axis.label)[:1].upper() for axis in array.dims)
    if len(labels) == array.ndim == len(set(labels)):
        return labels
    if str(array.name).rpartition("/")[2] == KSPACE and array.ndim in SLICES:
        return SLICES[array.ndim]
    return UNNAMED.get(array.ndim) or "?" * array.ndim


def _mask(mask: np.ndarray, size: tuple[int, ...], name: str) -> np.ndarray:
    """Returns a mask of columns as (1, 1, W), and one of rows or pixels as (1, H, W).

    Raises:
        UserError: If it does not fit.
    """
    other = mask.ndim == 2 and mask.shape == (size[0], 1) and size[0] > 1  # lines along it
    found = np.broadcast_to(mask, size) if other else mask.squeeze()
    if found.shape not in (size, size[-1:]):
        raise UserError(
            f"{name}: mask has the shape {list(mask.shape)}, which does not fit {KSPACE} of "
            f"{list(size)}; correct it"
        )
    return found.reshape(1, *(1,) * (2 - found.ndim), *found.shape)


def _copy_attributes(old: h5py.HLObject, new: h5py.HLObject) -> None:
    """Copies attributes, but for references to other objects of the file."""
    for name, value in old.attrs.items():
        if name not in ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME"):
            new.attrs[name] = value


def _copy_values(name: str, part: object, new: h5py.File) -> None:
    """Copies what is no array of numbers: groups with their attributes, single values, texts."""
    if isinstance(part, h5py.Group):
        _copy_attributes(part, new.require_group(name))
    elif isinstance(part, h5py.Dataset) and part.size == 1:
        part.file.copy(part, new, name)
