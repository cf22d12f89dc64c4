"""NIfTI volumes and series of them, by nibabel."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from diffem.data.cast import unscaled
from diffem.data.layout import zooms
from diffem.data.reader import Content, Note, Reader, Whole
from diffem.runtime.errors import UserError

AXES = "XYZTCUV"  # NIfTI-1's dim[1] to dim[7]


class NiftiReader(Reader):
    """Reads .nii and .nii.gz files, whose axes are X, Y, Z and time.

    A volume is a measurement; with `dataset.dims` 2, a slice along Z is. Values are scaled by the
    header's slope and intercept. Files are written with the header, the affine map and the
    scaling.
    """

    @contextmanager
    def open(self, file: Path, name: str) -> Iterator[Content]:
        """Opens a file; parts are read when they are asked for."""
        image: Any = nibabel.load(file)
        if not isinstance(image, nibabel.Nifti1Pair):
            raise UserError(f"{name} is a {type(image).__name__}, no image in space; convert it")
        array: Any = image.dataobj
        if array.dtype.kind not in "buifc":
            raise UserError(f"{name} holds {array.dtype}, colours, which are not read; convert it")
        values = _Scaled(array)
        if file.suffix == ".gz":  # a part of it takes all that is before it
            values = Whole(values.shape, values.dtype, lambda: _Scaled(array)[...])
        yield Content(values, AXES[: len(array.shape)])

    def write(
        self, file: Path, array: np.ndarray, axes: str, *, like: Path | None, note: Note
    ) -> int:
        """Writes a file with the header and the affine map of another."""
        wanted = [a for a in AXES if a in axes]
        array, outside = array.transpose([axes.index(a) for a in wanted]), 0
        if like is None:
            # X and Y are there always, and what is beyond them in its place.
            whole = AXES[: AXES.index(wanted[-1]) + 1]
            index = tuple(slice(None) if a in wanted else None for a in whole)
            nibabel.Nifti1Image(array[index], np.eye(4), dtype=array.dtype).to_filename(file)
            return 0
        old: Any = nibabel.load(like)
        header, affine = old.header.copy(), old.affine
        shape = tuple(old.shape)
        missing = tuple(slice(None) if a in wanted else None for a in AXES[: len(shape)])
        array = array[missing] if len(wanted) < len(shape) else array
        zoom = zooms(AXES[: array.ndim], array.shape, AXES[: len(shape)], shape)
        if any(factor != 1 for factor in zoom.values()):
            affine = _zoomed(affine, zoom)
            header.set_sform(affine, int(header["sform_code"]))
            header.set_qform(affine, int(header["qform_code"]))
        slope, intercept = float(old.dataobj.slope), float(old.dataobj.inter)
        dtype = header.get_data_dtype()
        if (slope, intercept) != (1, 0) and note.is_sample and dtype.kind in "ui":
            array, outside = unscaled(array, dtype, slope, intercept)
        else:
            slope, intercept = 1.0, 0.0
        header.set_data_dtype(array.dtype)
        new = type(old)(array, affine, header)
        new.header.set_slope_inter(slope, intercept)  # an image begins without
        new.to_filename(file)
        return outside


class _Scaled:
    """The values of a file, float32 where they are scaled numbers of at most 16 bits.

    Arguments:
        array: nibabel's array in the file.
    """

    def __init__(self, array: Any) -> None:  # noqa: ANN401
        self.array, self.shape = array, tuple(array.shape)
        scaled = (array.slope, array.inter) != (1, 0)
        self.dtype = np.result_type(array.dtype, np.float32) if scaled else np.dtype(array.dtype)

    def __getitem__(self, index: Any) -> np.ndarray:  # noqa: ANN401
        """Returns the part at an index."""
        return np.asarray(self.array[index]).astype(self.dtype)


def _zoomed(affine: np.ndarray, zoom: dict[str, float]) -> np.ndarray:
    """Returns the affine map of smaller pixels that cover the same space.

    The edge of the first pixel, at -1/2, stays where it is.
    """
    factors = np.array([zoom[a] for a in "XYZ"])
    inner = np.diag([*1 / factors, 1.0])
    inner[:3, 3] = 0.5 / factors - 0.5
    return affine @ inner
