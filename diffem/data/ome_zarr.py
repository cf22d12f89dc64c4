"""Zarr arrays and OME-Zarr images, by zarr."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from diffem.data.layout import UNNAMED, zooms
from diffem.data.reader import Content, Note, Reader, choose
from diffem.runtime.errors import UserError

LETTERS = {"time": "T", "t": "T", "channel": "C", "c": "C", "z": "Z", "y": "Y", "x": "X"}


class ZarrReader(Reader):
    """Reads an array of a Zarr store: `dataset.key`, OME-Zarr's full resolution, or the only one.

    The axes are those that OME-Zarr names, or the array's dimension names; without both they are
    those of an array in a .npy file. Stores are written with the attributes of those that were
    read, and of a pyramid the full resolution alone.
    """

    keyed = True
    holds_sets = True
    folders = True

    @contextmanager
    def open(self, file: Path, name: str) -> Iterator[Content]:
        """Opens a store; chunks are read when parts of them are asked for."""
        array, image = self._array(zarr.open(file, mode="r"), name)
        yield Content(_Chunked(array), _axes(array, image))

    def write(
        self, file: Path, array: np.ndarray, axes: str, *, like: Path | None, note: Note
    ) -> int:
        """Writes a store with the attributes of another."""
        if like is None:
            new = zarr.create_array(str(file), shape=array.shape, dtype=array.dtype)
            new[...] = array
            return 0
        store = zarr.open(like, mode="r")
        old, image = self._array(store, str(like))
        given: dict[str, Any] = {"zarr_format": old.metadata.zarr_format}
        if array.ndim == old.ndim:
            given["chunks"] = tuple(
                min(c, s) for c, s in zip(old.chunks, array.shape, strict=True)
            )
        names = getattr(old.metadata, "dimension_names", None)
        if names and len(names) == array.ndim:
            given["dimension_names"] = names
        attributes = dict(old.attrs)
        if isinstance(store, zarr.Array):
            new = zarr.create_array(
                str(file), shape=array.shape, dtype=array.dtype, attributes=attributes, **given
            )
            new[...] = array
            return 0
        group = zarr.open_group(str(file), mode="w", zarr_format=old.metadata.zarr_format)
        group.attrs.update(dict(store.attrs))
        if image is not None:
            zoom = zooms(axes, array.shape, _axes(old, image), old.shape)
            _set_image(group, _one_level(image, zoom))
        new = group.create_array(
            old.path, shape=array.shape, dtype=array.dtype, attributes=attributes,
            **{k: v for k, v in given.items() if k != "zarr_format"},
        )  # fmt: skip
        new[...] = array
        return 0

    def _array(self, store: Any, name: str) -> tuple[Any, Mapping[str, Any] | None]:  # noqa: ANN401
        """Returns the array that is meant, and OME-Zarr's description if it is part of an image.

        Raises:
            UserError: If there is none of the name, or several and no name was given.
        """
        if isinstance(store, zarr.Array):
            if self.key:
                raise UserError(f"{name} is one array; leave dataset.key={self.key} out")
            return store, None
        image = _image(store)
        if image is not None and self.key is None:
            return store[image["datasets"][0]["path"]], image
        return choose(dict(_arrays(store)), self.key, name), image


class _Chunked:
    """An array of a store, with a dtype of numpy's.

    Arguments:
        array: The array.
    """

    def __init__(self, array: Any) -> None:  # noqa: ANN401
        self.array, self.shape, self.dtype = array, tuple(array.shape), np.dtype(array.dtype)

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        """Returns the part at an index."""
        return np.asarray(self.array[index])


def _arrays(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yields the arrays of a group and of those in it, by their paths."""
    for name, member in sorted(group.members()):
        if isinstance(member, zarr.Array):
            yield path + name, member
        else:
            yield from _arrays(member, f"{path}{name}/")


def _image(group: Any) -> Mapping[str, Any] | None:  # noqa: ANN401
    """Returns the description of the first image of an OME-Zarr group; None if it is none."""
    attributes = dict(group.attrs)
    images = attributes.get("ome", attributes).get("multiscales")
    return images[0] if images else None


def _set_image(group: Any, image: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Sets the description of the image of an OME-Zarr group."""
    attributes = dict(group.attrs)
    if "ome" in attributes:
        group.attrs["ome"] = {**attributes["ome"], "multiscales": [image]}
    else:
        group.attrs["multiscales"] = [image]


def _one_level(image: Mapping[str, Any], zoom: Mapping[str, float]) -> dict[str, Any]:
    """Returns an image's description with its full resolution alone.

    Arguments:
        image: The description.
        zoom: By how much more pixels it gets along X, Y and Z.
    """
    first = dict(image["datasets"][0])
    letters = [_letter(axis) for axis in image.get("axes", [])]
    changed = []
    for transform in first.get("coordinateTransformations", []):
        if len(transform.get("scale", ())) == len(letters):
            scale = [s / zoom.get(a, 1) for a, s in zip(letters, transform["scale"], strict=True)]
            transform = {**transform, "scale": scale}
        changed.append(transform)
    return {**image, "datasets": [{**first, "coordinateTransformations": changed}]}


def _axes(array: Any, image: Mapping[str, Any] | None) -> str:  # noqa: ANN401
    """Returns the letters of an array's axes."""
    names = image.get("axes") if image is not None else None
    names = names or getattr(array.metadata, "dimension_names", None)
    names = names or dict(array.attrs).get("_ARRAY_DIMENSIONS")
    letters = "".join(_letter(name) for name in names or ())
    if len(letters) == array.ndim == len(set(letters)):
        return letters
    return UNNAMED.get(array.ndim) or "?" * array.ndim


def _letter(axis: Any) -> str:  # noqa: ANN401 - a text, or OME's mapping with a name
    """Returns the letter of a named axis."""
    name = str(axis.get("name") if isinstance(axis, Mapping) else axis).lower()
    return LETTERS.get(name, name[:1].upper() or "?")
