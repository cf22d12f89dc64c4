"""FITS files of astronomy, by astropy."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from diffem.data.cast import unscaled
from diffem.data.layout import zooms
from diffem.data.reader import Content, Note, Reader
from diffem.runtime.errors import UserError

SCIENCE, QUALITY, ERROR = "SCI", "DQ", "ERR"
AXES = {1: "X", 2: "YX", 3: "IYX", 4: "TIYX"}
# Of the header what is of the old values: their range, scaling and checksums.
OF_VALUES = ("DATAMIN", "DATAMAX", "CHECKSUM", "DATASUM", "BLANK", "BSCALE", "BZERO")


class FitsReader(Reader):
    """Reads the image of a FITS file: that named `dataset.key`, SCI, or the one that there is.

    Of several of one name the key has the version too, as in SCI:2.

    A third axis holds measurements, unless `dataset.axes` says otherwise. Where the extension DQ
    is not zero, nothing was measured; ERR is the standard deviation of each pixel's noise. Files
    are written with the header: units, coordinates.
    """

    keyed = True

    @contextmanager
    def open(self, file: Path, name: str) -> Iterator[Content]:
        """Opens a file; parts are read when they are asked for."""
        with file.open("rb") as content, fits.open(content, memmap=False) as units:
            unit = self._image(units, name)
            version = unit.ver
            quality, error = (_extension(units, n, version) for n in (QUALITY, ERROR))
            for part in (quality, error):
                if part is not None and part.shape != unit.shape:
                    raise UserError(
                        f"{name}: {part.name} has the shape {list(part.shape)}, and the image "
                        f"{list(unit.shape)}; correct it"
                    )
            first = unit.section[(slice(0, 1),) * len(unit.shape)]
            yield Content(
                _Section(unit, np.asarray(first).dtype),
                AXES.get(len(unit.shape), "?" * len(unit.shape)),
                None if quality is None else _Section(quality, np.dtype(np.int64)),
                std=None if error is None else _Section(error, np.dtype(np.float64)),
            )

    def write(
        self, file: Path, array: np.ndarray, axes: str, *, like: Path | None, note: Note
    ) -> int:
        """Writes an image with the headers of a file, in an extension if it was in one."""
        if like is None:
            fits.PrimaryHDU(array).writeto(file)
            return 0
        with fits.open(like, memmap=False) as units:
            unit = self._image(units, str(like))
            header, scale = unit.header.copy(), _scaling(unit)
            first = units[0].header.copy()  # type: ignore[union-attr]
            primary = unit is units[0]
            shape = unit.shape
        for key in OF_VALUES:
            header.remove(key, ignore_missing=True)
            first.remove(key, ignore_missing=True)
        _zoom(header, zooms(axes, array.shape, AXES[len(shape)], shape))
        header["HISTORY"] = f"diffem: {note.text}"
        outside = 0
        if scale is not None and note.is_sample:
            dtype, slope, intercept = scale
            raw, outside = unscaled(array, dtype, slope, intercept)
            array = raw * slope + intercept
        image = (fits.PrimaryHDU if primary else fits.ImageHDU)(array, header)
        if scale is not None and note.is_sample:
            image.scale(scale[0].name, bscale=scale[1], bzero=scale[2])
        new = fits.HDUList([image] if primary else [fits.PrimaryHDU(header=first), image])
        new.writeto(file, output_verify="silentfix")
        return outside

    def _image(self, units: Any, name: str) -> Any:  # noqa: ANN401 - of many classes
        """Returns the unit whose image is meant.

        Raises:
            UserError: If there is none, or several and no name was given.
        """
        images = [u for u in units if u.is_image and u.shape]
        if not images:
            raise UserError(f"{name} holds no image; give another file")
        wanted, _, version = (self.key or SCIENCE).upper().partition(":")
        chosen = [u for u in images if u.name.upper() == wanted and version in ("", str(u.ver))]
        if not chosen and self.key is None:
            chosen = [u for u in images if u.name.upper() not in (QUALITY, ERROR)]
        if len(chosen) != 1:
            there = ", ".join(f"{u.name or 'PRIMARY'}:{u.ver} {list(u.shape)}" for u in images)
            count = len(chosen) or "no"
            raise UserError(
                f"{name} has {count} images named {self.key or SCIENCE}; dataset.key can be "
                f"{there}"
            )
        return chosen[0]


class _Section:
    """An image of which parts are read when they are asked for.

    Arguments:
        unit: The unit that holds it.
        dtype: The dtype of its values.
    """

    def __init__(self, unit: Any, dtype: np.dtype) -> None:  # noqa: ANN401
        self.unit, self.shape, self.dtype = unit, tuple(unit.shape), dtype

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        """Returns the part at an index."""
        return np.asarray(self.unit.section[index])


def _extension(units: Any, name: str, version: int) -> Any:  # noqa: ANN401
    """Returns the extension of a name and version; None if there is none with an image."""
    found = [u for u in units if u.is_image and u.shape and u.name.upper() == name]
    return next((u for u in found if u.ver == version), None)


def _scaling(unit: Any) -> tuple[np.dtype, float, float] | None:  # noqa: ANN401
    """Returns dtype, slope and intercept of whole numbers that stand for others; None if none do.

    Unsigned numbers, which FITS has by an intercept, are read as such.
    """
    slope, intercept = getattr(unit, "_orig_bscale", 1), getattr(unit, "_orig_bzero", 0)
    bits = getattr(unit, "_orig_bitpix", unit.header["BITPIX"])
    if bits < 0 or (slope == 1 and intercept in (0, -128, 2**15, 2**31, 2**63)):
        return None
    return np.dtype("uint8" if bits == 8 else f"int{bits}"), float(slope), float(intercept)


def _zoom(header: Any, zoom: dict[str, float]) -> None:  # noqa: ANN401
    """Changes the coordinates in a header for pixels that are smaller along X and Y."""
    for number, axis in ((1, "X"), (2, "Y")):
        factor = zoom[axis]
        if factor == 1:
            continue
        if (key := f"CRPIX{number}") in header:  # the first pixel's centre is 1
            header[key] = (header[key] - 0.5) * factor + 0.5
        if (key := f"CDELT{number}") in header:
            header[key] /= factor
        for row in (1, 2):
            if (key := f"CD{row}_{number}") in header:
                header[key] /= factor
