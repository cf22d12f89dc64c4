"""TIFF, OME-TIFF and ImageJ's TIFF files, by tifffile."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from diffem.data.images import ImageReader, LossyImage
from diffem.data.layout import zooms
from diffem.data.reader import Content, Note, Reader, Whole
from diffem.runtime.errors import UserError

DEFLATE = (8, 32946)  # the values of the tag Compression that mean zlib
# Of ImageJ's metadata what tifffile writes itself, or what shows other values than those written.
OF_VALUES = ("ImageJ", "images", "hyperstack", "axes", "min", "max", "Ranges", "LUTs", "mode")
OME_TYPES = {
    "float32": "float",
    "float64": "double",
    "complex64": "complex",
    "complex128": "double-complex",
}


class TiffReader(Reader):
    """Reads TIFF files with any number of pages and channels.

    Pages are measurements, unless OME's metadata say that they are channels or slices of a volume,
    or ImageJ's do and have the spacing of the slices. Files are written with the metadata,
    resolution and description of those that were read: as OME-TIFF, as ImageJ's hyperstacks, or as
    plain pages.
    """

    @contextmanager
    def open(self, file: Path, name: str) -> Iterator[Content]:
        """Opens a file; pages are decoded when they are asked for."""
        with tifffile.TiffFile(file) as tif:
            page = tif.pages.first
            if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
                raise UserError(
                    f"{name} has a palette, whose numbers are no intensities; convert it"
                )
            if page.compression not in tifffile.TIFF.DECOMPRESSORS:
                compression = tifffile.COMPRESSION(page.compression).name
                with _by_pillow(file, name, compression) as content:
                    yield content
                return
            if len(tif.series) != 1:
                shapes = ", ".join(str(list(s.shape)) for s in tif.series[:3])
                raise UserError(
                    f"{name} holds {len(tif.series)} series of images, of shapes {shapes} …; "
                    "split it into files"
                )
            series = tif.series[0]
            if any(p is None for p in series.pages):
                raise UserError(f"{name} lacks pages that its metadata name; get it again")
            yield Content(_array(series), _axes(tif))

    def write(
        self, file: Path, array: np.ndarray, axes: str, *, like: Path | None, note: Note
    ) -> int:
        """Writes a file with the metadata of another."""
        if like is None:
            _write_plain(file, array, axes, {})
            return 0
        with tifffile.TiffFile(like) as tif:
            series, page = tif.series[0], tif.pages.first
            zoom = zooms(axes, array.shape, series.axes, series.shape)
            given = _tags(page, zoom)
            if tif.is_ome and (xml := _ome_xml(tif.ome_metadata, array, axes, zoom)):
                given |= {"description": xml.encode(), "metadata": None, "ome": False}
            elif tif.is_ome:
                given |= {"ome": True, "metadata": {"axes": axes}}
            elif tif.is_imagej and array.dtype.name in ("uint8", "uint16", "float32"):
                held = {k: v for k, v in (tif.imagej_metadata or {}).items() if k not in OF_VALUES}
                if "spacing" in held:
                    held["spacing"] /= zoom["Z"]
                order = axes.replace("I", "Z") if "I" not in series.axes else axes
                given |= {"imagej": True, "metadata": {**held, "axes": order}}
            elif tif.is_shaped:
                held = dict((tif.shaped_metadata or ({},))[0])
                held.pop("shape", None)
                given |= {"metadata": {**held, "axes": axes}}
            else:
                given |= {"metadata": None}
                if page.description:
                    given |= {"description": page.description}
            _write_plain(file, array, axes, given)
        return 0


class _Pages:
    """The pages of a series, of which those that are asked for are decoded.

    Arguments:
        series: A series whose first axes are its pages.
    """

    def __init__(self, series: tifffile.TiffPageSeries) -> None:
        self.series, self.shape, self.dtype = series, series.shape, series.dtype
        self.lead = series.shape[: len(series.shape) - len(series.keyframe.shape)]

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        """Returns the part at an index."""
        numbers = np.arange(len(self.series.pages)).reshape(self.lead)
        chosen = np.asarray(numbers[index[: len(self.lead)]])
        pages = [self.series.pages[int(i)].asarray() for i in chosen.flat]  # type: ignore[union-attr]
        values = np.stack(pages).reshape(*chosen.shape, *pages[0].shape)
        return values[(..., *index[len(self.lead) :])]


def _axes(tif: tifffile.TiffFile) -> str:
    """Returns the letters of the axes of a file's first series.

    ImageJ calls the images of any stack slices: they are along Z only if it knows their spacing.
    """
    axes = tif.series[0].axes
    if tif.is_imagej and "spacing" not in (tif.imagej_metadata or {}) and "I" not in axes:
        return axes.replace("Z", "I")
    return axes


def _array(series: tifffile.TiffPageSeries) -> Any:  # noqa: ANN401
    """Returns the array of a series, by pages if each page is one part of it."""
    page, shape = series.keyframe.shape, tuple(series.shape)
    lead = shape[: len(shape) - len(page)]
    if lead and shape[len(lead) :] == page and np.prod(lead) == len(series.pages):
        return _Pages(series)
    return Whole(shape, series.dtype, series.asarray)


@contextmanager
def _by_pillow(file: Path, name: str, compression: str) -> Iterator[Content]:
    """Opens a file whose compression tifffile cannot undo alone, by Pillow if that can."""
    try:
        with ImageReader().open(file, name) as content:
            yield content
    except LossyImage as error:
        raise UserError(
            f"{name} is compressed by {compression}, which needs the package imagecodecs, and it "
            "is not installed: pip install imagecodecs"
        ) from error


def _tags(page: Any, zoom: dict[str, float]) -> dict[str, Any]:  # noqa: ANN401
    """Returns what is written of the tags of a page."""
    tags: dict[str, Any] = {"byteorder": page.parent.byteorder}
    held = {name: page.tags[name].value for name in ("XResolution", "YResolution", "Software",
            "DateTime", "ResolutionUnit") if name in page.tags}  # fmt: skip
    if {"XResolution", "YResolution"} <= held.keys():
        tags["resolution"] = tuple(
            _ratio(held[f"{axis}Resolution"], zoom[axis]) for axis in ("X", "Y")
        )
        tags["resolutionunit"] = held.get("ResolutionUnit", 2)
    tags |= {k.lower(): held[k] for k in ("Software", "DateTime") if held.get(k)}
    if page.compression in DEFLATE:
        tags["compression"] = "zlib"
    if page.photometric in (tifffile.PHOTOMETRIC.MINISWHITE, tifffile.PHOTOMETRIC.RGB):
        tags["photometric"] = page.photometric
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        tags["planarconfig"] = page.planarconfig
    return tags


def _ratio(resolution: tuple[int, int], zoom: float) -> tuple[int, int] | float:
    """Returns a resolution, in pixels a unit, of a number of pixels that is larger by a factor."""
    return resolution if zoom == 1 else resolution[0] / resolution[1] * zoom


def _ome_xml(xml: str | None, array: np.ndarray, axes: str, zoom: dict[str, float]) -> str | None:
    """Returns OME's description of a file as that of another array in one file.

    Arguments:
        xml: The description.
        array: The array.
        axes: The letters of its axes.
        zoom: By how much more pixels it has along X, Y and Z.

    Returns:
        None if the array has other channels, or more than one image is described.
    """
    root = ElementTree.fromstring(xml or "<OME/>")
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    found = root.findall(f"{space}Image/{space}Pixels")
    if len(found) != 1:
        return None
    pixels, sizes = found[0], dict(zip(axes, array.shape, strict=True))
    channels = sizes.get("C", 1) * sizes.get("S", 1)
    if int(pixels.get("SizeC", 1)) != channels:
        return None
    root.attrib.pop("UUID", None)
    pixels.set("Type", OME_TYPES.get(array.dtype.name, array.dtype.name))
    pixels.attrib.pop("SignificantBits", None)
    for axis in "XYZ":
        pixels.set(f"Size{axis}", str(sizes.get(axis, 1)))
        if zoom[axis] != 1 and (size := pixels.get(f"PhysicalSize{axis}")):
            pixels.set(f"PhysicalSize{axis}", repr(float(size) / zoom[axis]))
    for data in pixels.findall(f"{space}TiffData"):
        pixels.remove(data)
    at = max((i for i, part in enumerate(pixels) if part.tag == f"{space}Channel"), default=-1)
    pixels.insert(at + 1, ElementTree.Element(f"{space}TiffData"))
    ElementTree.register_namespace("", space.strip("{}"))
    return '<?xml version="1.0" encoding="UTF-8"?>' + ElementTree.tostring(
        root, encoding="unicode"
    )


def _write_plain(file: Path, array: np.ndarray, axes: str, given: dict[str, Any]) -> None:
    """Writes an array with what is given of its tags."""
    if axes == "CYX" and len(array) == 3 and array.dtype.name in ("uint8", "uint16") and not given:
        array, axes = np.moveaxis(array, 0, -1), "YXS"
    if "S" in axes:
        colours = array.shape[axes.index("S")] == 3
        given = {**given, "photometric": "rgb" if colours else "minisblack"}
    else:
        given = {k: v for k, v in given.items() if k != "planarconfig"}
        if given.get("photometric") != tifffile.PHOTOMETRIC.MINISWHITE:
            given["photometric"] = "minisblack"
    given.setdefault("metadata", None if axes in ("YX", "YXS") else {"axes": axes})
    tifffile.imwrite(file, np.ascontiguousarray(array), **given)
