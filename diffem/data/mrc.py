"""MRC files of electron microscopy, by mrcfile."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from mrcfile.mrcinterpreter import MrcInterpreter

from diffem.data.layout import zooms
from diffem.data.reader import Content, Note, Reader
from diffem.runtime.errors import UserError

ORIGIN = ("nxstart", "nystart", "nzstart", "mapc", "mapr", "maps", "origin", "exttyp")
DTYPES = ("int8", "int16", "uint16", "float16", "float32", "complex64")


class MrcReader(Reader):
    """Reads images, stacks of images, volumes and stacks of volumes, as the header says.

    Files are written with the voxel size, the origin, the labels and the extended header of those
    that were read.
    """

    @contextmanager
    def open(self, file: Path, name: str) -> Iterator[Content]:
        """Opens a file; parts are read when they are asked for."""
        with mrcfile.mmap(file, mode="r") as held:
            yield Content(np.asarray(held.data), _axes(held))

    def write(
        self, file: Path, array: np.ndarray, axes: str, *, like: Path | None, note: Note
    ) -> int:
        """Writes a file with the header of another."""
        with mrcfile.new(file) as new:
            new.set_data(np.ascontiguousarray(array))
            if "Z" in axes and array.ndim == 3:
                new.set_volume()
            elif array.ndim == 3:
                new.set_image_stack()
            if like is None:
                return 0
            with mrcfile.open(like, header_only=True) as old:
                header: Any = old.header
                written: Any = new.header
                size = (int(header.mz) or 1, int(header.ny), int(header.nx))
                zoom = zooms(axes, array.shape, "ZYX", size)
                pixel = old.voxel_size
                new.voxel_size = tuple(float(pixel[a.lower()]) / zoom[a] for a in "XYZ")
                new.set_extended_header(old.extended_header)
                for field in ORIGIN:
                    written[field] = header[field]
                for label in old.get_labels():
                    if label not in new.get_labels():
                        new.add_label(label)
            if len(new.get_labels()) < 10:  # as many as the header holds
                new.add_label(f"diffem: {note.text}")
        return 0

    def check(self, suffix: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Refuses samples with several channels, or of a dtype that MRC does not have."""
        channels = shape[0] // 2 if dtype.kind == "c" else shape[0]
        if len(shape) < 3 or channels != 1 or dtype.name not in DTYPES:
            raise UserError(
                f"samples of shape {list(shape)} and {dtype} cannot be written as {suffix} files; "
                "give the measurements as a .npy file"
            )


def _axes(held: MrcInterpreter) -> str:
    """Returns the letters of the axes of a file's array."""
    if held.is_single_image():
        return "YX"
    if held.is_image_stack():
        return "IYX"
    return "ZYX" if held.is_volume() else "IZYX"
