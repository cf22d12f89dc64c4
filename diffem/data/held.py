"""What a file or a folder of measurements holds, in the data's own units."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from diffem.corruption import Channel, Measurement, Windows
from diffem.data.arrays import measurement_of
from diffem.data.format import Format
from diffem.data.images import ImageFolder
from diffem.data.npy import Rows, open_npy, open_npz
from diffem.data.patches import Patches, shapes_of
from diffem.data.scale import Scale
from diffem.runtime.errors import UserError

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
    """The standard deviation of the noise of each measurement, (N,); of a channel that is not
    linear, the noise's parameters, (N, K)."""
    truth: Rows | None = None
    """Clean images, (N, *shape), for metrics alone."""
    names: tuple[str, ...] | None = None
    """The names of a folder's files without their suffix; None for arrays."""

    def label(self, row: int) -> str:
        """Returns what the sentences call a measurement: a file of a folder, a row, or a patch."""
        if isinstance(self.y, Patches):
            image, corner = self.y.origin(row)
            return f"{self._replace(y=self.y.images).label(image)}, patch at {list(corner)}"
        if isinstance(self.y, ImageFolder):
            return f"{self.y.key}: {self.y.files[row]}"
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
        return Held(self.name, self.format, Patches(self.y, windows), operator, std, truth)

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
            noise=None if self.std is None else self.std[index],
            source=self.name,
        )


def open_measurements(
    path: str | Path,
    *,
    limit: int | None = None,
    key: str = "dataset.path",
    alike: bool = True,
) -> Held:
    """Opens a file or a folder of measurements; their headers are checked, nothing else is read.

    Arguments:
        path: A folder of PNG or TIFF images, a .npy file, or a .npz file with `y` and perhaps
            `operator`, `std` and `truth`.
        limit: The largest number of a folder's images that are used; None for all.
        key: The setting that names the path, as the sentences begin.
        alike: Whether the images of a folder must be of one size; others are to be cut.

    Raises:
        UserError: If the path is none of these, damaged, lacks `y`, or holds anything else.
    """
    path = Path(path)
    name = f"{key}: {path}"
    if path.is_dir():
        images = ImageFolder(path, limit=limit, key=key, alike=alike)
        suffix = images.files[0].suffix.lower().replace(".tiff", ".tif")
        names = tuple(file.stem for file in images.files)
        form = Format(suffix, images.dtype.name, channel_axis=images.shape[1] > 1)
        return Held(name, form, images, names=names)
    if not path.exists():
        raise UserError(f"{name} does not exist; give a folder of images, a .npz or a .npy file")
    if path.suffix not in (".npz", ".npy") or not path.is_file():
        raise UserError(f"{name} is no folder and no .npz or .npy file; give one of these")
    if path.suffix == ".npy":
        arrays: dict[str, Rows] = {"y": open_npy(path, name)}
    else:
        arrays = open_npz(path, name, FIELDS)
    y = arrays["y"]
    for field, array in arrays.items():
        axes, types = (2, "uif") if field in ("y", "truth") else (1, "buif")
        if array.dtype.kind not in types or len(array.shape) < axes:
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
    return Held(name, form, y, operator, std, truth)
