"""DICOM images and series of them, by pydicom."""

from collections.abc import Iterator
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
from diffem.data.layout import zooms
from diffem.data.reader import Content, Note, Reader, Whole
from diffem.runtime.errors import UserError

LEVELS = 2**16 - 1  # whole numbers that stand for the values of a mean


class DicomReader(Reader):
    """Reads DICOM files, whose frames are measurements.

    Values are those of the rescale slope and intercept. Files are written with the header of those
    that were read, marked as derived from them, under new identifiers: of the instance, and of a
    series for each sample. Means and standard deviations, which DICOM has no floats for, get a
    rescale slope that divides their range by 65,535.
    """

    def __init__(self, key: str | None = None) -> None:
        super().__init__(key)
        self.series: dict[tuple[str, str], str] = {}

    @contextmanager
    def open(self, file: Path, name: str) -> Iterator[Content]:
        """Opens a file; it is decoded when its values are asked for."""
        held = pydicom.dcmread(file, defer_size="1 KB")
        if "PixelData" not in held:
            raise UserError(f"{name} holds no image of whole numbers; leave it out")
        if "ModalityLUTSequence" in held or held.PhotometricInterpretation == "PALETTE COLOR":
            raise UserError(f"{name} gives its values by a table, which is not read; convert it")
        if held.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
            raise UserError(f"{name} is big-endian, a retired form of DICOM; convert it")
        slope, intercept = _scaling(held)
        stored = pixel_dtype(held)
        dtype = stored if (slope, intercept) == (1, 0) else np.result_type(stored, np.float32)
        frames, colours = int(held.get("NumberOfFrames", 1) or 1), int(held.SamplesPerPixel)
        shape = (
            *([frames] if frames > 1 else []),
            *(held.Rows, held.Columns),
            *([colours] if colours > 1 else []),
        )
        axes = "I" * (frames > 1) + "YX" + "S" * (colours > 1)

        def load() -> np.ndarray:
            pixels = pydicom.dcmread(file).pixel_array
            return pixels if dtype == stored else (pixels * slope + intercept).astype(dtype)

        series = held.get("SeriesInstanceUID")
        yield Content(Whole(shape, dtype, load), axes, group=series and str(series))

    def write(
        self, file: Path, array: np.ndarray, axes: str, *, like: Path | None, note: Note
    ) -> int:
        """Writes a file that is derived from another, or a new one."""
        held = _capture() if like is None else pydicom.dcmread(like)
        if axes == "CYX":
            array = np.moveaxis(array, 0, -1)
        exact = like is not None and note.is_sample
        raw, bits, outside = self._numbers(held, array, exact=exact)
        if like is not None:
            self._derive(held, note, exact=exact)
            old = (held.Rows, held.Columns)
            first = axes.index("Y")
            zoom = zooms("YX", array.shape[first : first + 2], "YX", old)
            if "PixelSpacing" in held:
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

    def check(self, suffix: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Refuses samples with channels that are no colours."""
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UserError(
                f"samples of shape {list(shape)} cannot be written as {suffix} files; give the "
                "measurements as a .npy file"
            )

    def _numbers(
        self, held: Dataset, array: np.ndarray, *, exact: bool
    ) -> tuple[np.ndarray, int, int]:
        """Returns the whole numbers for values, their bits, and how many had to be clipped.

        Arguments:
            held: The header, which gets a scaling of its own for values that are not `exact`.
            array: The values.
            exact: Whether they are numbers of the header's scaling.
        """
        if exact:
            slope, intercept = _scaling(held)
            stored = pixel_dtype(held).newbyteorder("=")
            raw, outside = unscaled(array, stored, slope, intercept)
            bits = int(held.BitsStored)
            low, high = (
                (0, 2**bits - 1)
                if stored.kind == "u"
                else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            )
            outside += int(((raw < low) | (raw > high)).sum())
            return raw.clip(low, high).astype(stored), bits, outside
        if array.dtype.name in ("uint8", "uint16", "int8", "int16"):
            return array, 8 * array.dtype.itemsize, 0
        low, high = float(array.min()), float(array.max())
        slope = (high - low) / LEVELS or 1.0
        held.RescaleSlope, held.RescaleIntercept = _text(slope), _text(low)
        held.RescaleType = held.get("RescaleType", "US")
        slope, low = float(held.RescaleSlope), float(held.RescaleIntercept)
        return unscaled(array, np.dtype(np.uint16), slope, low)[0], 16, 0

    def _derive(self, held: Dataset, note: Note, *, exact: bool) -> None:
        """Marks a header as that of an image that was derived from the one that it is of."""
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


def _scaling(held: Dataset) -> tuple[float, float]:
    """Returns the rescale slope and intercept of an image."""
    return float(held.get("RescaleSlope", 1) or 1), float(held.get("RescaleIntercept", 0) or 0)


def _text(number: float) -> str:
    """Returns a number as DICOM has it, in at most 16 characters."""
    return next(text for digits in range(16, 0, -1) if len(text := f"{number:.{digits}g}") <= 16)


def _capture() -> Dataset:
    """Returns the header of an image that no device made."""
    held = Dataset()
    held.file_meta = FileMetaDataset()
    held.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    held.SOPClassUID = held.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    held.StudyInstanceUID, held.SeriesInstanceUID = generate_uid(), generate_uid()
    held.ImageType = ["DERIVED", "SECONDARY"]
    held.Modality, held.ConversionType = "OT", "SYN"
    held.PatientName = held.PatientID = held.StudyID = ""
    held.PhotometricInterpretation = "MONOCHROME2"
    return held
