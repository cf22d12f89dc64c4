"""Series of DICOM slices: which file lies where."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from diffem.runtime.errors import UserError
from diffem.runtime.progress import warn

PARALLEL = 0.999  # the least cosine between axes of slices that lie side by side
EVEN = 0.01  # the part of their distance by which slices of even distances may differ


class Slice(NamedTuple):
    """A file of a series, as its header places it."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    """That of its values."""
    series: str
    """The identifier of the series."""
    axes: np.ndarray | None
    """The direction of its rows and columns, (2, 3); None if it does not say."""
    position: np.ndarray | None
    """The place of its first pixel in mm, (3,); None if it does not say."""
    number: int | None
    """Its number in the series; None if it does not say."""


def slice_of(file: Path, held: Dataset, dtype: np.dtype) -> Slice:
    """Returns the place of a file in its series.

    Arguments:
        file: The file.
        held: Its header.
        dtype: The dtype of its values.

    Raises:
        UserError: If it names no series, or has colours.
    """
    if not held.get("SeriesInstanceUID") or int(held.SamplesPerPixel) > 1:
        raise UserError(
            f"{file} is no grey slice of a series, which dataset.dims=3 puts together; leave it "
            "out, or leave dataset.dims out"
        )
    axes, position = held.get("ImageOrientationPatient"), held.get("ImagePositionPatient")
    number = held.get("InstanceNumber")
    return Slice(
        file,
        (int(held.Rows), int(held.Columns)),
        dtype,
        str(held.SeriesInstanceUID),
        np.array(axes, float).reshape(2, 3) if axes else None,
        np.array(position, float) if position else None,
        None if number is None else int(number),
    )


def in_order(slices: Sequence[Slice], key: str) -> list[Slice]:
    """Returns the slices of a series in their order, with a warning if their distances differ.

    It is that of their positions along the normal of their plane, or of their numbers where not
    all have a position.

    Arguments:
        slices: The slices.
        key: The setting that names the files, as the sentences begin.

    Raises:
        UserError: If they are of several sizes or directions, have no order, or two of them have
            one place.
    """
    first = slices[0]
    name, advice = f"{key}: {first.file}", "give each volume a series of its own"
    if other := next((s for s in slices if s.shape != first.shape), None):
        raise UserError(
            f"{name} is of {list(first.shape)} pixels, and {other.file.name} of the same series "
            f"of {list(other.shape)}; {advice}"
        )
    if all(s.axes is not None and s.position is not None for s in slices):
        assert first.axes is not None
        if other := next((s for s in slices if not _is_parallel(first.axes, s.axes)), None):
            raise UserError(
                f"{name} and {other.file.name} of the same series lie in other directions; "
                f"{advice}"
            )
        normal = np.cross(*first.axes)
        places = [float(normal @ s.position) for s in slices]
        positions = True
    elif all(s.number is not None for s in slices):
        places, positions = [float(s.number or 0) for s in slices], False
    else:
        raise UserError(
            f"{name} is of a series whose slices have neither positions nor numbers; convert it"
        )
    order = np.argsort(places, kind="stable")
    gaps = np.diff(np.array(places)[order])
    if len(gaps) and gaps.min() <= EVEN * np.median(gaps):
        i = int(gaps.argmin())
        one, two = (slices[order[k]].file.name for k in (i, i + 1))
        raise UserError(f"{name}: {one} and {two} of one series have the same place; {advice}")
    if positions and len(gaps) and np.ptp(gaps) > EVEN * np.median(gaps):
        warn(
            f"{name}: the slices of this series are {gaps.min():.4g} to {gaps.max():.4g} mm apart "
            "(is one missing?), and are taken for even"
        )
    return [slices[i] for i in order]


def _is_parallel(axes: np.ndarray, others: np.ndarray | None) -> bool:
    """Returns whether rows and columns have the same directions."""
    return others is not None and bool(((axes * others).sum(axis=1) > PARALLEL).all())
