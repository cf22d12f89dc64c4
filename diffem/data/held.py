"""What a file or a folder of measurements holds, in the data's own units."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from diffem.corruption import Channel, LinearChannel, Measurement, Weighting, Windows
from diffem.data.arrays import measurement_of, own_operator
from diffem.data.folder import open_folder
from diffem.data.format import Format
from diffem.data.layout import Reading
from diffem.data.npy import ComplexRows, Rows, open_npy, open_npz
from diffem.data.patches import Patches, shapes_of
from diffem.data.reader import ARRAY, KNOWN, suffix_of
from diffem.data.scale import Scale
from diffem.data.stack import FileErrors, FileStack, FileValues
from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn

FIELDS = ("y", "operator", "std", "truth")


class Held(NamedTuple):
    """What a file or a folder holds; rows are read when they are asked for."""

    name: str
    """What the sentences call it."""
    format: Format
    """The form of its measurements."""
    y: Rows
    """Measurements, (N, *M); (N, H, W) for grey images without a channel axis. NaN where nothing
    was measured."""
    operator: Rows | None = None
    """The operator's parameters φ of each measurement, (N, *P); for a mask, 0 or 1."""
    std: Rows | None = None
    """The standard deviation of the noise of each measurement, (N,), or of each pixel, (N, *M); of
    a channel that is not linear, the noise's parameters, (N, K)."""
    truth: Rows | None = None
    """Clean images, (N, *shape), for metrics alone."""
    names: tuple[str, ...] | None = None
    """The names of measurements in files, without suffix, and of patches those of the images; None
    for arrays."""
    groups: np.ndarray | None = None
    """The number of the file of each measurement, (N,), or of the series that it is a part of,
    where one has several; of patches, that of each image. None where they are independent."""

    @property
    def files(self) -> FileStack | None:
        """The files of the measurements; None for arrays."""
        return self.y if isinstance(self.y, FileStack) else None

    def label(self, row: int) -> str:
        """Returns what the sentences call a measurement: a file of a folder, a row, or a patch."""
        if isinstance(self.y, Patches):
            image, corner = self.y.origin(row)
            return f"{self._replace(y=self.y.images).label(image)}, patch at {list(corner)}"
        if isinstance(self.y, FileStack):
            return self.y.label(row)
        return f"{self.name}: row {row} of y"

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """The shapes of the measurements: one, unless they are files of several sizes."""
        return set(shapes_of(self.y) or [tuple(self.y.shape[1:])])

    def windows(
        self, sides: Sequence[int], rows: Sequence[int], *, overlap: int = 0, advice: str
    ) -> dict[int, Windows]:
        """Returns the windows on measurements, by the measurement's number.

        Arguments:
            sides: The sides of a window, along the last axes of y.
            rows: The numbers of the measurements.
            overlap: How many pixels neighbouring windows share along each axis.
            advice: What to do about a measurement that is too small, as its sentence ends.

        Raises:
            UserError: If a measurement is smaller than a window.
        """
        known: dict[tuple[int, ...], Windows] = {}
        found: dict[int, Windows] = {}
        shapes = shapes_of(self.y)
        for row in rows:
            shape = self.y.shape[1:] if shapes is None else shapes[row]
            own = shape[max(0, len(shape) - len(sides)) :]
            if own not in known:
                if len(own) < len(sides) or any(a < s for a, s in zip(own, sides, strict=True)):
                    raise UserError(
                        f"{self.label(row)} has shape {list(shape)}, which is smaller than "
                        f"{list(sides)}; {advice}"
                    )
                known[own] = Windows.of(own, sides, overlap)
            found[row] = known[own]
        return found

    def cut(self, windows: Mapping[int, Windows]) -> "Held":
        """Returns what windows of measurements hold, each window a measurement of its own.

        What has the pixels of y is cut as y is: masks, the truth. What there is once for each
        measurement, such as its noise, is that of each of its pieces.

        Arguments:
            windows: The windows on each measurement that is used, by its number.
        """
        axes = len(next(iter(windows.values())).sides)

        def pieces(array: Rows | None) -> Rows | None:
            if array is None:
                return None
            inner = array.shape[1:]
            cut = len(inner) >= axes and inner[-axes:] == self.y.shape[-axes:]
            return Patches(array, windows, cut=cut)

        operator, std, truth = map(pieces, (self.operator, self.std, self.truth))
        groups = self.groups if self.groups is None else self.groups[list(windows)]
        return self._replace(
            y=Patches(self.y, windows), operator=operator, std=std, truth=truth, groups=groups
        )

    def noise(self, index: np.ndarray, channel: Channel) -> np.ndarray | None:
        """Returns what is known of the noise of rows, (n, …); None if nothing is.

        That which files of measurements hold beside them is left out under a channel that has one
        number for a measurement, with a warning.
        """
        std = self.std.images if isinstance(self.std, Patches) else self.std
        if isinstance(std, FileErrors):
            own = own_operator(channel) if isinstance(channel, LinearChannel) else None
            if not isinstance(own, Weighting):
                std.say_unused(channel)
                return None
        return None if self.std is None else self.std[index]

    def select(self, rows: Tensor, channel: Channel, scale: Scale) -> Measurement:
        """Returns the measurements of rows on the scale of [-1, 1].

        Arguments:
            rows: Their numbers, (n,).
            channel: The channel that they went through, on the scale of [-1, 1].
            scale: The data's units.

        Raises:
            UserError: If they cannot be read, or do not fit the channel.
        """
        index = rows.numpy()
        return measurement_of(
            self.y[index],
            channel,
            scale,
            operator=None if self.operator is None else self.operator[index],
            noise=self.noise(index, channel),
            source=self.name,
        )


def open_measurements(
    path: str | Path,
    *,
    limit: int | None = None,
    key: str = "dataset.path",
    reading: Reading | None = None,
    alike: bool = True,
) -> Held:
    """Opens a file or a folder of measurements; their headers are checked, nothing else is read.

    Arguments:
        path: A folder of files of a known format, with or without what belongs to each beside
            them, see `diffem.data.folder`; one such file; a .npy file; or a .npz file with `y`
            and perhaps `operator`, `std` and `truth`.
        limit: The number of measurements after which a folder's further files are left out; None
            for none.
        key: The setting that names the path, as the sentences begin.
        reading: Which array of a file is read, and how; None for the one that there is.
        alike: Whether the measurements in files must be of one size; if not, they are cut
            (`Held.cut`).

    Raises:
        UserError: If the path is none of these, damaged, lacks `y`, or holds anything else.
    """
    path, reading = Path(path), reading or Reading()
    name = f"{key}: {path}"
    suffix = suffix_of(path)
    if not path.exists():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise UserError(
            f"{name} does not exist{where}; give a folder of images, a .npz or a .npy file, or "
            "another file of measurements"
        )
    if path.is_dir() or (suffix and KNOWN[suffix] is not ARRAY):
        return _open_files(path, reading, limit=limit, key=key, alike=alike)
    if path.suffix not in (".npz", ".npy") or not path.is_file():
        known = ", ".join([".npz", *(s for s in KNOWN if s.count(".") == 1)])
        raise UserError(f"{name} is no folder and no file of {known}; give one of these")
    reading.refuse(f"{path.suffix} files")
    if path.suffix == ".npy":
        arrays: dict[str, Rows] = {"y": open_npy(path, name)}
    else:
        arrays = open_npz(path, name, FIELDS)
    y = arrays["y"]
    for field, array in arrays.items():
        axes, types = (2, "uif") if field in ("y", "truth") else (1, "buif")
        if array.dtype.kind not in types + "c" * (field == "y") or len(array.shape) < axes:
            raise UserError(
                f"{name}: {field} must be real numbers, (N, …), got {array.dtype} of shape "
                f"{list(array.shape)}; convert it"
            )
        if len(array) != len(y):
            raise UserError(
                f"{name}: {field} must have a row for each of the {len(y)} measurements, got the "
                f"shape {list(array.shape)}"
            )
    if not len(y):
        raise UserError(f"{name} holds no measurement; give at least one")
    form = Format(path.suffix, y.dtype.name, channel_axis=len(y.shape) > 3)
    operator, std, truth = (arrays.get(field) for field in FIELDS[1:])
    return Held(name, form, ComplexRows(y) if y.dtype.kind == "c" else y, operator, std, truth)


def _open_files(path: Path, reading: Reading, *, limit: int | None, key: str, alike: bool) -> Held:
    """Opens a folder of files of a known format, or one such file."""
    if path.is_dir() and suffix_of(path) not in (".zarr", ".ome.zarr"):
        y, operator, std, truth = open_folder(path, reading, limit=limit, key=key, alike=alike)
    else:
        y, operator, std, truth = FileStack([path], reading, key=key), None, None, None
    if y.dtype.kind not in "uif":
        raise UserError(
            f"{y.label(0)} must hold real or complex numbers, got {y.dtype}; convert it"
        )
    if not len(y):
        raise UserError(f"{key}: {path} holds no measurement; give at least one")
    if y.parts[0].suffix == ".jpg":
        warn(
            f"{key}: {path} holds JPEG images, whose compression is a corruption of its own; "
            "samples are written as PNG"
        )
    if std is None and y.holds_std:
        std = FileErrors(y)
    if operator is None and any(phi is not None for phi in y.operators):
        operator = _operators(y)
    form = Format(
        y.parts[0].suffix,
        y.stored.name,
        channel_axis=bool(y.parts[0].layout.channel),
        **reading._asdict(),
    )
    groups = y.group_of
    # Rows of one file that names no axis are as independent as those of a .npy file.
    alone = len(y.parts) == 1 and y.parts[0].layout.rows == "N"
    if alone or len(np.unique(groups)) == len(y):
        groups = None
    return Held(f"{key}: {path}", form, y, operator, std, truth, y.names, groups)


def _operators(y: FileStack) -> FileValues:
    """Returns the operator's parameters that files of measurements hold themselves.

    Raises:
        UserError: If some files hold none, or of another shape.
    """
    first = next(phi for phi in y.operators if phi is not None)
    for part, phi in zip(y.parts, y.operators, strict=True):
        if phi is None or phi.shape != first.shape:
            found = "none" if phi is None else list(phi.shape)
            raise UserError(
                f"{y.key}: {part.file} has a mask of shape {found}, and another file of shape "
                f"{list(first.shape)}; keep files of one sort"
            )
    held = [phi for phi in y.operators if phi is not None]
    return FileValues(held, [part.layout.count for part in y.parts])
