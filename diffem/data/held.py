"""What a file or a folder of measurements holds, in the data's own units."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from diffem.corruption import Channel, Measurement
from diffem.data.arrays import measurement_of
from diffem.data.format import Format
from diffem.data.images import ImageFolder
from diffem.data.npy import Rows, open_npy, open_npz
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
        """Returns what the sentences call a measurement: a file of a folder, or a row."""
        if isinstance(self.y, ImageFolder):
            return f"{self.y.key}: {self.y.files[row]}"
        return f"{self.name}: row {row} of y"

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
    path: str | Path, *, limit: int | None = None, key: str = "dataset.path"
) -> Held:
    """Opens a file or a folder of measurements; their headers are checked, nothing else is read.

    Arguments:
        path: A folder of PNG or TIFF images, a .npy file, or a .npz file with `y` and perhaps
            `operator`, `std` and `truth`.
        limit: The largest number of a folder's images that are used; None for all.
        key: The setting that names the path, as the sentences begin.

    Raises:
        UserError: If the path is none of these, damaged, lacks `y`, or holds anything else.
    """
    path = Path(path)
    name = f"{key}: {path}"
    if path.is_dir():
        images = ImageFolder(path, limit=limit, key=key)
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
