"""DICOM images and series of them, by pydicom."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import pixel_dtype
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from diffem.data.cast import unscaled
from diffem.data.dicom_series import Slice, in_order, slice_of
from diffem.data.layout import zooms
from diffem.data.reader import Content, Note, Reader, Whole, stem_of
from diffem.data.source import unreadable
from diffem.runtime.errors import UserError

LEVELS = 2**16 - 1  # whole numbers that stand for the values of a mean


class DicomReader(Reader):
    """Reads DICOM files, whose frames are measurements, and series of slices as volumes.

    Values are those of the rescale slope and intercept. Files are written with the header of those
    that were read, marked as derived from them, under new identifiers: of the instance, and of a
    series for each sample. Means and standard deviations, which DICOM has no floats for, get a
    rescale slope that divides their range by 65,535. A volume is written as a folder of slices.
    """

    def __init__(self, key: str | None = None) -> None:
        super().__init__(key)
        self.series: dict[tuple[str, str], str] = {}
        self.slices: dict[Path, list[Slice]] = {}

    @contextmanager
    def open(self, file: Path, name: str) -> Iterator[Content]:
        """Opens a file, or the volume that it begins; what is asked for is decoded then."""
        if file in self.slices:
            yield _volume(self.slices[file])
            return
        held = _header(file, name)
        frames, colours = int(held.get("NumberOfFrames", 1) or 1), int(held.SamplesPerPixel)
        shape = (
            *([frames] if frames > 1 else []),
            *(held.Rows, held.Columns),
            *([colours] if colours > 1 else []),
        )
        axes = "I" * (frames > 1) + "YX" + "S" * (colours > 1)
        dtype, series = _dtype(held), held.get("SeriesInstanceUID")
        values = Whole(shape, dtype, lambda: _values(file, dtype))
        yield Content(values, axes, group=series and str(series))

    def volumes(self, files: Iterable[Path], key: str) -> list[Path]:
        """Returns the first slice of each series, in place of its files.

        The slices lie in the order of their positions along the normal of the image plane, or of
        their numbers where the headers have no positions. Files of several frames stay.
        """
        found: list[Path] = []
        series: dict[str, list[Slice]] = {}
        for file in files:
            name = f"{key}: {file}"
            try:
                held = _header(file, name)
                if int(held.get("NumberOfFrames", 1) or 1) > 1:
                    found.append(file)
                    continue
                one = slice_of(file, held, _dtype(held))
            except UserError:
                raise
            except Exception as error:  # pydicom raises many types
                raise unreadable(name, error) from error
            if one.series not in series:
                found.append(file)
            series.setdefault(one.series, []).append(one)
        first = {slices[0].file: in_order(slices, key) for slices in series.values()}
        found = [first[file][0].file if file in first else file for file in found]
        self.slices = {slices[0].file: slices for slices in first.values()}
        return found

    def write(
        self, file: Path, array: np.ndarray, axes: str, *, like: Path | None, note: Note
    ) -> int:
        """Writes a file that is derived from another, or a new one; of a volume, a folder."""
        limits = float(array.min()), float(array.max())
        exact = like is not None and note.is_sample
        if like not in self.slices and (like is not None or axes != "ZYX"):
            held = self._derived(like, note, exact=exact) if like else _capture()
            return _save(file, array, axes, held, exact=exact, limits=limits)
        slices = [one.file for one in self.slices[like]] if like else [None] * len(array)
        if len(slices) != len(array):
            raise UserError(
                f"samples of {len(array)} slices cannot be written like the {len(slices)} of "
                f"{like}; give the measurements as a .npy file"
            )
        folder, series, outside = file.with_name(stem_of(file)), generate_uid(), 0
        folder.mkdir()
        for i, (one, values) in enumerate(zip(slices, array, strict=True)):
            held = self._derived(one, note, exact=exact) if one else _capture(series, i + 1)
            new = folder / (one.name if one else f"{i:05d}.dcm")
            outside += _save(new, values, "YX", held, exact=exact, limits=limits)
        return outside

    def check(self, suffix: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Refuses samples with channels that are no colours."""
        if shape[0] not in {3: (1, 3), 4: (1,)}.get(len(shape), ()):
            raise UserError(
                f"samples of shape {list(shape)} cannot be written as {suffix} files; give the "
                "measurements as a .npy file"
            )

    def _derived(self, like: Path, note: Note, *, exact: bool) -> Dataset:
        """Returns the header of a file, marked as that of an image that was derived from it."""
        held = pydicom.dcmread(like)
        if "SOPClassUID" in held and "SOPInstanceUID" in held:
            source = Dataset()
            source.ReferencedSOPClassUID = held.SOPClassUID
            source.ReferencedSOPInstanceUID = held.SOPInstanceUID
            held.SourceImageSequence = [source]
        kinds = list(held.get("ImageType", ["ORIGINAL", "PRIMARY"]))
        held.ImageType = ["DERIVED", "SECONDARY", *kinds[2:]]
        held.DerivationDescription = f"diffem: {note.text}"
        old = str(held.get("SeriesInstanceUID", ""))
        held.SeriesInstanceUID = self.series.setdefault((old, note.text), generate_uid())
        held.SeriesDescription = f"{held.get('SeriesDescription', '')} {note.text}".strip()[:64]
        for name in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"):
            if name in held and (not exact or not name.startswith("PixelPadding")):
                del held[name]
        if note.is_std:  # a window of intensities shows nothing of it
            for name in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation"):
                if name in held:
                    del held[name]
        return held


def _header(file: Path, name: str) -> Dataset:
    """Returns the header of a file.

    Raises:
        UserError: If its values cannot be read.
    """
    held = pydicom.dcmread(file, defer_size="1 KB")
    if "PixelData" not in held:
        raise UserError(f"{name} holds no image of whole numbers; leave it out")
    if "ModalityLUTSequence" in held or held.PhotometricInterpretation == "PALETTE COLOR":
        raise UserError(f"{name} gives its values by a table, which is not read; convert it")
    if held.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
        raise UserError(f"{name} is big-endian, a retired form of DICOM; convert it")
    return held


def _dtype(held: Dataset) -> np.dtype:
    """Returns the dtype of an image's values."""
    stored = pixel_dtype(held)
    return stored if _scaling(held) == (1, 0) else np.result_type(stored, np.float32)


def _values(file: Path, dtype: np.dtype) -> np.ndarray:
    """Returns the values of a file in a dtype that holds them."""
    held = pydicom.dcmread(file)
    slope, intercept = _scaling(held)
    pixels = held.pixel_array
    return pixels.astype(dtype) if (slope, intercept) == (1, 0) else (
        pixels * slope + intercept
    ).astype(dtype)  # fmt: skip


def _volume(slices: Sequence[Slice]) -> Content:
    """Returns the slices of a series as one array."""
    dtype = np.result_type(*(s.dtype for s in slices))

    def load() -> np.ndarray:
        return np.stack([_values(s.file, dtype) for s in slices])

    shape = len(slices), *slices[0].shape
    return Content(Whole(shape, dtype, load), "ZYX", group=slices[0].series)


def _save(
    file: Path,
    array: np.ndarray,
    axes: str,
    held: Dataset,
    *,
    exact: bool,
    limits: tuple[float, float],
) -> int:
    """Writes a file with a header, and returns how many values had to be clipped.

    Arguments:
        file: The new file.
        array: Its values.
        axes: The letters of the array's axes.
        held: The header, which gets the new pixels, their number and their size.
        exact: Whether the values are numbers of the header's scaling.
        limits: The least and the largest value of the image, or of the volume that it is of.
    """
    if axes == "CYX":
        array = np.moveaxis(array, 0, -1)
    raw, bits, outside = _numbers(held, array, exact=exact, limits=limits)
    if "PixelSpacing" in held:
        first, old = axes.index("Y"), (held.Rows, held.Columns)
        zoom = zooms("YX", array.shape[first : first + 2], "YX", old)
        spacing = held.PixelSpacing
        held.PixelSpacing = [float(spacing[0]) / zoom["Y"], float(spacing[1]) / zoom["X"]]
    colour = "RGB" if "S" in axes or axes == "CYX" else held.PhotometricInterpretation
    grey = "MONOCHROME1" if colour == "MONOCHROME1" else "MONOCHROME2"
    wide = raw if raw.dtype.itemsize == 4 else None
    if wide is not None:  # as in radiotherapy; pydicom sets 8 and 16 bits alone
        raw = np.zeros(wide.shape, np.uint16)
    held.set_pixel_data(raw, "RGB" if colour == "RGB" else grey, min(bits, 16))
    if wide is not None:
        held.PixelData = wide.tobytes()
        held.BitsAllocated, held.BitsStored, held.HighBit = 32, bits, bits - 1
        held.PixelRepresentation = int(wide.dtype.kind == "i")
    held.save_as(file, enforce_file_format=True)
    return outside


def _numbers(
    held: Dataset, array: np.ndarray, *, exact: bool, limits: tuple[float, float]
) -> tuple[np.ndarray, int, int]:
    """Returns the whole numbers for values, their bits, and how many had to be clipped.

    Arguments:
        held: The header, which gets a scaling of its own for values that are not `exact`.
        array: The values.
        exact: Whether they are numbers of the header's scaling.
        limits: The least and the largest value that a scaling of its own must hold.
    """
    if exact:
        slope, intercept = _scaling(held)
        stored = pixel_dtype(held).newbyteorder("=")
        raw, outside = unscaled(array, stored, slope, intercept)
        bits = int(held.BitsStored)
        low, high = (
            (0, 2**bits - 1) if stored.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
        outside += int(((raw < low) | (raw > high)).sum())
        return raw.clip(low, high).astype(stored), bits, outside
    if array.dtype.name in ("uint8", "uint16", "int8", "int16"):
        return array, 8 * array.dtype.itemsize, 0
    low, high = limits
    slope = (high - low) / LEVELS or 1.0
    held.RescaleSlope, held.RescaleIntercept = _text(slope), _text(low)
    held.RescaleType = held.get("RescaleType", "US")
    slope, low = float(held.RescaleSlope), float(held.RescaleIntercept)
    return unscaled(array, np.dtype(np.uint16), slope, low)[0], 16, 0


def _scaling(held: Dataset) -> tuple[float, float]:
    """Returns the rescale slope and intercept of an image."""
    return float(held.get("RescaleSlope", 1) or 1), float(held.get("RescaleIntercept", 0) or 0)


def _text(number: float) -> str:
    """Returns a number as DICOM has it, in at most 16 characters."""
    return next(text for digits in range(16, 0, -1) if len(text := f"{number:.{digits}g}") <= 16)


def _capture(series: str | None = None, number: int | None = None) -> Dataset:
    """Returns the header of an image that no device made.

    Arguments:
        series: The identifier of the series that it is a slice of; None for one of its own.
        number: Its number in the series.
    """
    held = Dataset()
    held.file_meta = FileMetaDataset()
    held.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    held.SOPClassUID = held.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    held.StudyInstanceUID = generate_uid(entropy_srcs=[series]) if series else generate_uid()
    held.SeriesInstanceUID = series or generate_uid()
    if number is not None:
        held.InstanceNumber = number
    held.ImageType = ["DERIVED", "SECONDARY"]
    held.Modality, held.ConversionType = "OT", "SYN"
    held.PatientName = held.PatientID = held.StudyID = ""
    held.PhotometricInterpretation = "MONOCHROME2"
    return held
