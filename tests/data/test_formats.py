"""Files of each format are read as they are, and samples have their form, as libraries read it."""

import gc
import itertools
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffem.corruption import Denoising, Fourier, GaussianNoise, Mask, Weighting, make_channel
from diffem.data import MeasurementFiles
from diffem.data.format import SampleWriter, write_generated
from diffem.data.held import Held, open_measurements
from diffem.data.layout import Layout, Reading
from diffem.data.open_files import OPEN
from diffem.data.reader import KNOWN
from diffem.runtime.errors import UserError

RNG = np.random.default_rng(0)
PIXEL = 0.25  # of every file here, in the unit of its format


def values(held: Held) -> np.ndarray:
    return held.y[np.arange(len(held.y))]


def write(held: Held, folder: Path, *, add: float = 1) -> Path:
    """Writes two samples: the measurements, and these with a number added."""
    y = torch.from_numpy(values(held).astype(np.float64)).nan_to_num()
    x = torch.stack([y, y + add], dim=1)
    with SampleWriter(
        folder, held.format, x.shape[2:], count=len(x), n=2, like=held.files
    ) as writer:
        for part in x.split(3):  # across files
            writer.write(part)
    return folder


def check(
    held: Held, folder: Path, read: Callable[[Path], np.ndarray], *, add: float = 1
) -> list[Path]:
    """Writes samples, and compares each file, as `read` has it, with that of the measurements.

    Returns:
        The first file of measurements, and the files of its sample 1, mean and std.
    """
    write(held, folder, add=add)
    assert held.files is not None
    suffix = held.format.suffix
    for part in held.files.parts:
        y = read(part.file)
        for s in range(2):
            written = read(folder / "samples" / f"{part.stem}_{s:02d}{suffix}")
            assert written.dtype == y.dtype and written.shape == y.shape
            np.testing.assert_array_equal(written, y + np.array(s * add).astype(y.dtype))
        mean, std = (read(folder / name / f"{part.stem}{suffix}") for name in ("mean", "std"))
        assert mean.shape == std.shape == y.shape
        # float32 of mean and std, from exact sums of two.
        np.testing.assert_allclose(mean, y + add / 2, rtol=1e-6)
        np.testing.assert_allclose(std, add / 2**0.5, rtol=1e-5)
    part = held.files.parts[0]
    paths = [f"samples/{part.stem}_01{suffix}", f"mean/{part.stem}{suffix}"]
    assert not [f for f in folder.rglob(".*") if f.suffix == ".npy"]
    return [part.file, *(folder / p for p in (*paths, f"std/{part.stem}{suffix}"))]


def generated(
    held: Held, folder: Path, read: Callable[[Path], np.ndarray], *, step: float = 0.0
) -> None:
    """Samples of a prior, for which there is no file, have their values and the dtype."""
    x = torch.from_numpy(values(held).astype(np.float64))[:2]
    write_generated(folder, held.format, x.shape[1:], [x[:1], x[1:]], count=2)
    files = sorted(folder.iterdir())
    arrays = [read(f) for f in files]
    array = np.stack(arrays) if len(arrays) == 2 else arrays[0]
    assert array.dtype == np.dtype(held.format.dtype)
    if array.dtype.kind == "c":
        array = np.stack([np.real(array), np.imag(array)])
    # A format has the axes in an order of its own; values are rounded to a step.
    found, given = (np.sort(each, axis=None) for each in (array, x.numpy()))
    np.testing.assert_allclose(found, given, rtol=0, atol=0.51 * step)


def native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="))


# Layouts.


@pytest.mark.parametrize("axes", ["".join(p) for p in itertools.permutations("TCYX")])
@pytest.mark.parametrize("complex_numbers", [False, True])
def test_a_layout_is_inverted(axes: str, complex_numbers: bool) -> None:
    sizes = dict(T=4, C=3, Y=5, X=2)
    array = RNG.normal(size=[sizes[a] for a in axes])
    array = array + 1j * RNG.normal(size=array.shape) if complex_numbers else array
    layout = Layout.of(axes, array.shape, array.dtype, dims=None, name="y")
    assert layout.count == 4 and layout.shape == (6 if complex_numbers else 3, 5, 2)
    held = np.stack([layout.measurement(array[layout.index(i)]) for i in range(4)])
    expected = np.moveaxis(array, [axes.index(a) for a in "TCYX"], range(4))
    np.testing.assert_array_equal(held[:, :3], expected.real)
    back, letters = layout.array(held)
    assert letters == axes
    np.testing.assert_array_equal(back, array)


def test_slices_of_volumes() -> None:
    array = RNG.normal(size=(2, 3, 4, 5))
    layout = Layout.of("TXZY", array.shape, array.dtype, dims=2, name="y")
    assert layout.count == 8 and layout.shape == (1, 5, 3)
    np.testing.assert_array_equal(layout.measurement(array[layout.index(6)])[0], array[1, :, 2].T)
    whole = Layout.of("TXZY", array.shape, array.dtype, dims=None, name="y")
    assert whole.count == 2 and whole.shape == (1, 4, 5, 3)
    flat = Layout.of("ZYX", (1, 5, 3), array.dtype, dims=None, name="y")
    assert flat.count == 1 and flat.shape == (1, 5, 3)
    assert Layout.of("ZYX", (1, 5, 3), array.dtype, dims=3, name="y").shape == (1, 1, 5, 3)
    vectors = Layout.of("NX", (6, 7), array.dtype, dims=None, name="y")
    assert vectors.count == 6 and vectors.shape == (7,)


def test_samples_of_another_size_and_with_other_channels() -> None:
    layout = Layout.of("TYX", (2, 4, 4), np.dtype("u2"), dims=None, name="y")
    array, axes = layout.array(np.zeros((2, 3, 8, 8)))
    assert axes == "TCYX" and array.shape == (2, 3, 8, 8)
    array, axes = layout.array(np.zeros((2, 1, 8, 8)))
    assert axes == "TYX" and array.shape == (2, 8, 8)


@pytest.mark.parametrize(
    ("axes", "dims", "sentence"),
    [
        ("YX", None, "dataset.axes must have one letter for each axis, each letter once"),
        ("YYX", None, "each letter once: y has the axes YYX of sizes [2, 3, 4]"),
        ("TCN", None, "none of them X, Y or Z; name the axes by dataset.axes"),
        ("TYX", 3, "dataset.dims=3 needs as many axes of X, Y and Z"),
        ("CSX", None, "channels twice"),
    ],
)
def test_axes_that_do_not_fit(axes: str, dims: int | None, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        Layout.of(axes, (2, 3, 4), np.dtype("f4"), dims=dims, name="y")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"key": 3}, "dataset.key must be the name of an array, got 3"),
        ({"axes": "tyx"}, "dataset.axes must be a capital letter for each axis"),
        ({"dims": 4}, "dataset.dims must be"),
        ({"dims": 2}, "dataset.dims=2 has no effect on .npy files; leave it out"),
        ({"axes": "NYX"}, "dataset.axes=NYX has no effect on .npy files"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.zeros((9, 8, 8)))
    with pytest.raises(UserError) as error:
        MeasurementFiles(str(tmp_path / "y.npy"), **settings)
    assert sentence in str(error.value)


# TIFF.

TIFFS: dict[str, tuple[tuple[int, ...], str, dict[str, Any], str, tuple[int, ...]]] = {
    # array, dtype, how it is written, axes, measurements
    "16-bit RGB": ((6, 5, 3), "u2", {"photometric": "rgb"}, "YXS", (3, 3, 6, 5)),
    "five channels": ((5, 6, 4), "u2", {"metadata": {"axes": "CYX"}, "photometric": "minisblack"},
                      "CYX", (3, 5, 6, 4)),
    "float": ((6, 5), "f4", {}, "YX", (3, 1, 6, 5)),
    "double": ((6, 5), "f8", {}, "YX", (3, 1, 6, 5)),
    "pages": ((7, 6, 5), "u2", {"photometric": "minisblack", "metadata": None}, "IYX",
              (21, 1, 6, 5)),
    "named pages": ((7, 6, 5), ">i2", {"photometric": "minisblack", "metadata": {"axes": "TYX"},
                    "compression": "zlib", "byteorder": ">"}, "TYX", (21, 1, 6, 5)),
    "ImageJ's stack": ((4, 2, 6, 5), "u2", {"imagej": True, "metadata": {
        "axes": "TCYX", "unit": "um", "finterval": 3.0}}, "TCYX", (12, 2, 6, 5)),
    "ImageJ's pages": ((4, 6, 5), "u2", {"imagej": True, "metadata": {
        "axes": "ZYX", "unit": "um"}}, "ZYX", (12, 1, 6, 5)),
    "ImageJ's volume": ((4, 6, 5), "f4", {"imagej": True, "metadata": {
        "axes": "ZYX", "spacing": 2.0, "unit": "um"}}, "ZYX", (3, 1, 4, 6, 5)),
    "OME": ((3, 2, 4, 6, 5), "u2", {"ome": True, "photometric": "minisblack", "metadata": {
        "axes": "TCZYX", "PhysicalSizeX": PIXEL, "PhysicalSizeXUnit": "µm",
        "PhysicalSizeZ": 2.0, "Channel": {"Name": ["DAPI", "GFP"]}}},
            "TCZYX", (9, 2, 4, 6, 5)),
}  # fmt: skip


def tiffs(folder: Path, name: str) -> Path:
    tifffile = pytest.importorskip("tifffile")
    shape, dtype, given, _, _ = TIFFS[name]
    folder.mkdir()
    suffix = ".ome.tif" if "ome" in given else ".tif"
    for k in range(3):
        array = (RNG.random(shape) * 200).astype(dtype)
        tifffile.imwrite(
            folder / f"é {k}{suffix}", array, resolution=((40000, 1), (40000, 1)),
            resolutionunit="CENTIMETER", software="a camera", **given,
        )  # fmt: skip
    return folder


@pytest.mark.parametrize("name", TIFFS)
def test_tiff(name: str, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    _, dtype, given, axes, shape = TIFFS[name]
    held = open_measurements(tiffs(tmp_path / "y", name))
    assert held.y.shape == shape and held.format.dtype == np.dtype(dtype).name
    assert (held.groups is None) == (shape[0] == 3)
    files = check(held, tmp_path / "out", tifffile.imread)
    for file in files:
        with tifffile.TiffFile(file) as tif:
            page = tif.pages.first
            assert tif.series[0].axes == axes and len(tif.series) == 1
            assert page.tags["XResolution"].value == (40000, 1)
            assert page.tags["ResolutionUnit"].value == 3
            assert tif.is_imagej == ("imagej" in given) and tif.is_ome == ("ome" in given)
            if "imagej" not in given:
                assert page.tags["Software"].value == "a camera"
            metadata = tif.imagej_metadata if tif.is_imagej else {}
            for key in ("unit", "finterval", "spacing"):
                if key in (given.get("metadata") or {}):
                    assert metadata[key] == given["metadata"][key]
            assert tif.byteorder == given.get("byteorder", "<")
            if tif.is_ome:
                pixels = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
                assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeZ"]) == (PIXEL, 2.0)
                assert pixels["PhysicalSizeXUnit"] == "µm"
                assert [c["Name"] for c in pixels["Channel"]] == ["DAPI", "GFP"]
    if dtype != "f8":  # another reader's pages
        with Image.open(files[1]) as image, tifffile.TiffFile(files[0]) as tif:
            assert getattr(image, "n_frames", 1) == len(tif.pages)
    generated(held, tmp_path / "generated", tifffile.imread)


def test_pages_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")
    folder = tiffs(tmp_path / "y", "pages")
    held = open_measurements(folder)
    expected = np.concatenate([tifffile.imread(f) for f in sorted(folder.iterdir())])
    monkeypatch.setattr(
        tifffile.TiffPageSeries, "asarray", lambda *_: pytest.fail("all pages were read")
    )
    rows = np.array([20, 0, 9, 9])
    np.testing.assert_array_equal(held.y[rows][:, 0], expected[rows])


def test_smaller_pixels_of_larger_samples(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    held = open_measurements(tiffs(tmp_path / "y", "OME"))
    x = torch.zeros(9, 1, 2, 4, 12, 5)
    with SampleWriter(
        tmp_path / "out", held.format, x.shape[2:], count=9, n=1, like=held.files
    ) as writer:
        writer.write(x)
    with tifffile.TiffFile(tmp_path / "out" / "samples" / "é 0_00.ome.tif") as tif:
        page = tif.pages.first
        assert tif.series[0].shape == (3, 2, 4, 12, 5)
        numerator, denominator = page.tags["YResolution"].value
        assert numerator / denominator == pytest.approx(80000)
        assert page.tags["XResolution"].value == (40000, 1)


def test_what_is_no_plain_tiff(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "palette").mkdir()
    Image.fromarray(np.zeros((6, 5), np.uint8)).convert("P").save(tmp_path / "palette" / "a.tif")
    (tmp_path / "series").mkdir()
    with tifffile.TiffWriter(tmp_path / "series" / "a.tif") as tif:
        tif.write(np.zeros((6, 5), np.uint8), metadata=None)
        tif.write(np.zeros((7, 5), np.uint8), metadata=None)
    for name, sentence in (("palette", "has a palette"), ("series", "holds 2 series of images")):
        with pytest.raises(UserError, match=sentence):
            open_measurements(tmp_path / name)


def test_without_tifffile_pillow_reads_what_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, pages = tiffs(tmp_path / "float", "float"), tiffs(tmp_path / "pages", "pages")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    held = open_measurements(one)
    assert held.y.shape == (3, 1, 6, 5)

    def read(file: Path) -> np.ndarray:
        with Image.open(file) as image:
            assert image.info["dpi"] == (101600, 101600)
            return np.asarray(image)

    check(held, tmp_path / "out", read)
    with pytest.raises(UserError, match=r"7 pages\) would lose .*pip install 'diffem\[tiff\]'"):
        open_measurements(pages)


def test_a_compression_that_tifffile_lacks(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    if find_spec("imagecodecs"):
        pytest.skip("imagecodecs is installed")
    for name in ("one", "pages"):
        (tmp_path / name).mkdir()
    image = Image.fromarray(RNG.integers(0, 999, (6, 5), dtype=np.uint16))
    image.save(tmp_path / "one" / "a.tif", compression="tiff_lzw")
    held = open_measurements(tmp_path / "one")
    np.testing.assert_array_equal(values(held)[0, 0], np.asarray(image))
    check(held, tmp_path / "out", lambda f: np.asarray(Image.open(f)))
    image.save(
        tmp_path / "pages" / "a.tif", compression="tiff_lzw", save_all=True, append_images=[image]
    )
    with pytest.raises(UserError, match="compressed by LZW, which needs the package imagecodecs"):
        open_measurements(tmp_path / "pages")


def test_planes_of_colours(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    array = RNG.integers(0, 999, (3, 6, 5), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", planarconfig="separate")
    held = open_measurements(tmp_path)
    np.testing.assert_array_equal(values(held)[0], array)
    for file in check(held, tmp_path / "out", tifffile.imread):
        with tifffile.TiffFile(file) as tif:
            assert tif.series[0].axes == "SYX"


# HDF5.


def fastmri(folder: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    folder.mkdir()
    for k in range(3):
        kspace = (RNG.normal(size=(4, 6, 5)) + 1j * RNG.normal(size=(4, 6, 5))).astype("c8")
        with h5py.File(folder / f"scan{k}.h5", "w") as file:
            file["kspace"], file["mask"] = kspace, np.arange(5) % 2 == k % 2
            file["reconstruction_rss"] = np.zeros((4, 6, 5), "f4")
            file["ismrmrd_header"] = "<xml/>"
            file.attrs["acquisition"] = "T2"
    return folder


@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (6, 1), (1, 5)])
def test_masks_of_points_rows_and_columns_beside_k_space(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py")
    folder, mask = fastmri(tmp_path / "y"), RNG.integers(0, 2, shape)
    for file in folder.iterdir():
        with h5py.File(file, "a") as held:
            del held["mask"]
            held["mask"] = mask
    channel = make_channel(Fourier((1, 6, 5), acceleration=2.0), GaussianNoise(0.1))
    source = MeasurementFiles(str(folder), [1, 6, 5], heldout=0.2, range=[-1, 1])
    found = source.measurement_sets(channel)[0].select(slice(0, 1))
    measured = channel.measured_mask(found.y, found.operator)[0, 0]
    np.testing.assert_array_equal(measured, np.broadcast_to(mask, (1, 6, 5))[0])


def test_k_space_as_fastmri_has_it(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    folder = fastmri(tmp_path / "y")
    held = open_measurements(folder)
    assert held.y.shape == (12, 2, 6, 5) and held.y.dtype == np.float32
    assert held.operator is not None and held.operator.shape == (12, 1, 1, 5)
    with h5py.File(folder / "scan1.h5") as file:
        y = values(held)[4:8]
        np.testing.assert_array_equal(y[:, 0] + 1j * y[:, 1], file["kspace"][...])
        mask = held.operator[np.array([5])][0, 0, 0]
        np.testing.assert_array_equal(mask, file["mask"][...])
    source = MeasurementFiles(str(folder), heldout=0.2)
    assert source.shape == (2, 6, 5)
    train, heldout = source.measurement_sets(
        make_channel(Mask(source.shape, rho=0.5), GaussianNoise(0.1))
    )
    # By file: four slices each.
    assert (len(train), len(heldout)) == (8, 4)
    assert heldout.source.rows.tolist() in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11])  # type: ignore[union-attr]
    lines = train.select(slice(0, 1)).operator[0]
    assert lines.shape == (1, 6, 5) and (lines == lines[:, :1]).all()
    source = MeasurementFiles(str(folder), [1, 6, 5], heldout=0.2, range=[-1, 1])
    fourier = make_channel(Fourier((1, 6, 5), acceleration=2.0), GaussianNoise(0.1))
    train, _ = source.measurement_sets(fourier)
    assert train.select(slice(0, 1)).operator.shape == (1, 1, 1, 5)
    write(held, tmp_path / "out", add=2)
    for part in ("samples/scan1_00", "mean/scan1", "std/scan1"):
        with (
            h5py.File(tmp_path / "out" / f"{part}.h5") as file,
            h5py.File(folder / "scan1.h5") as old,
        ):
            array = file["reconstruction"]
            assert "kspace" not in file and "reconstruction_rss" not in file
            assert file["ismrmrd_header"].asstr()[()] == "<xml/>"
            assert file.attrs["acquisition"] == "T2" and array.shape == (4, 6, 5)
            if part.startswith("samples"):
                assert array.dtype == np.complex64
                np.testing.assert_array_equal(array[...], old["kspace"][...])
            elif part.startswith("mean"):
                np.testing.assert_allclose(array[...], old["kspace"][...] + 1 + 1j, rtol=1e-6)
            else:  # the root of two variances of 2
                assert array.dtype == np.float32
                np.testing.assert_allclose(array[...], 2, rtol=1e-6)


def test_an_array_of_an_hdf5_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    y = RNG.integers(0, 999, (20, 6, 5), dtype=np.uint16)
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file.create_dataset("camera/frames", data=y, chunks=(1, 6, 5), compression="gzip")
        file["camera/dark"] = np.zeros((3, 6, 5))
        file["camera/frames"].attrs["unit"] = "ADU"
        file["camera/frames"].dims[0].label = "time"
        file["camera/gain"] = 1.5
    with pytest.raises(UserError, match=r"several arrays; dataset\.key can be camera/dark \[3, 6"):
        open_measurements(tmp_path / "y.h5")
    with pytest.raises(UserError, match=r"has no array frames; dataset\.key can be camera/dark"):
        open_measurements(tmp_path / "y.h5", reading=Reading(key="frames"))
    held = open_measurements(tmp_path / "y.h5", reading=Reading(key="camera/frames"))
    np.testing.assert_array_equal(values(held)[:, 0], y)
    assert held.groups is None  # as the rows of a .npy file

    def read(path: Path) -> np.ndarray:
        with h5py.File(path) as file:
            array = file["camera/frames"]
            assert (array.attrs["unit"], array.dims[0].label) == ("ADU", "time")
            assert file["camera/gain"][()] == 1.5 and array.chunks == (1, 6, 5)
            assert "dark" not in file["camera"] or path.name == "y.h5"
            return array[...]

    check(held, tmp_path / "out", read)
    generated(held, tmp_path / "new", lambda path: h5py.File(path)["camera/frames"][...])


def test_an_array_that_a_link_leads_to_elsewhere(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    for k in range(2):
        with h5py.File(tmp_path / "a" / f"{k}.h5", "w") as file:
            if k == 0:
                file["y"] = np.zeros((3, 6, 5))
            else:
                file["y"] = h5py.ExternalLink(str(tmp_path / "b" / "secret.h5"), "y")
    with h5py.File(tmp_path / "b" / "secret.h5", "w") as file:
        file["y"] = np.ones((3, 6, 5))
    with pytest.raises(UserError, match=r"1\.h5 holds no array of numbers"):
        open_measurements(tmp_path / "a")


def test_the_axes_of_an_array_that_does_not_name_them(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    y = RNG.normal(size=(6, 5, 3, 8))
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["y"] = y
    held = open_measurements(tmp_path / "y.h5", reading=Reading(axes="YXCN"))
    np.testing.assert_array_equal(values(held), y.transpose(3, 2, 0, 1))
    check(held, tmp_path / "out", lambda path: h5py.File(path)["y"][...])


# FITS.


def test_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fits = pytest.importorskip("astropy.io.fits")
    folder = tmp_path / "y"
    folder.mkdir()
    for k in range(4):
        science = fits.ImageHDU(RNG.normal(100, 10, (6, 5)).astype("f4"), name="SCI")
        science.header["BUNIT"], science.header["CRPIX1"] = "electron/s", 2.5
        science.header["CRPIX2"], science.header["CD1_1"] = 1.0, PIXEL
        science.header["CD2_2"], science.header["CTYPE1"] = PIXEL, "RA---TAN"
        quality = np.zeros((6, 5), np.int32)
        quality[k, 2] = 4
        first = fits.PrimaryHDU()
        first.header["TELESCOP"] = "HST"
        error = fits.ImageHDU(np.full((6, 5), 2.0 + k, "f4"), name="ERR")
        error.data[0, 0] = 4.0
        flags = fits.ImageHDU(quality, name="DQ")
        fits.HDUList([first, science, error, flags]).writeto(folder / f"{k}.fits")
    held = open_measurements(folder)
    y = values(held)
    assert y.dtype == np.float32 and np.isnan(y).sum() == 4 and np.isnan(y[1, 0, 1, 2])
    sci = fits.getdata(folder / "0.fits", "SCI")
    np.testing.assert_array_equal(y[0, 0][~np.isnan(y[0, 0])], sci[~np.isnan(y[0, 0])])
    # One number for all pixels: ERR is left out, and that is said.
    source = MeasurementFiles(str(folder), heldout=0.5)
    train, _ = source.measurement_sets(
        make_channel(Mask(source.shape, rho=0.5), GaussianNoise(3.0))
    )
    train.select(slice(0, 2))
    assert capsys.readouterr().err.count("noise of each pixel in ERR, which Mask with Gaus") == 1
    channel = make_channel(Weighting(source.shape, ratio=1.0), GaussianNoise(3.0))
    train, _ = source.measurement_sets(channel)
    weight = train.select(slice(0, 2)).operator[:, 0].numpy()
    rows = train.source.rows.numpy()  # type: ignore[union-attr]
    expected = np.full((2, 6, 5), 3.0) / (2.0 + rows[:, None, None])
    expected[:, 0, 0] = 3.0 / 4.0
    expected[range(2), rows, 2] = 0
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
    assert "ERR" not in capsys.readouterr().err
    out = write(held, tmp_path / "out")
    for name in ("samples/0_01", "mean/0", "std/0"):
        with fits.open(out / f"{name}.fits") as units:
            assert [u.name for u in units] == ["PRIMARY", "SCI"]
            header = units["SCI"].header
            assert units[0].header["TELESCOP"] == "HST" and header["BUNIT"] == "electron/s"
            assert (header["CRPIX1"], header["CD1_1"], header["CTYPE1"]) == (
                2.5, PIXEL, "RA---TAN",
            )  # fmt: skip
            assert "diffem: posterior" in str(header["HISTORY"])
            assert units["SCI"].data.dtype == np.dtype(">f4") and units["SCI"].shape == (6, 5)
    np.testing.assert_array_equal(
        fits.getdata(out / "samples" / "0_00.fits", "SCI"), np.nan_to_num(y[0, 0])
    )


@pytest.mark.parametrize("dtype", ["u2", "i2", "f8", "i4"])
def test_an_image_of_a_primary_unit(dtype: str, tmp_path: Path) -> None:
    fits = pytest.importorskip("astropy.io.fits")
    unit = fits.PrimaryHDU(RNG.integers(0, 999, (7, 6, 5)).astype(dtype))
    unit.header["BUNIT"] = "adu"
    unit.writeto(tmp_path / "cube.fits")
    held = open_measurements(tmp_path / "cube.fits")
    assert held.y.shape == (7, 1, 6, 5) and held.format.dtype == np.dtype(dtype).name

    def read(file: Path) -> np.ndarray:
        assert fits.getheader(file)["BUNIT"] == "adu"
        return native(fits.getdata(file))

    check(held, tmp_path / "out", read)
    generated(held, tmp_path / "new", lambda f: native(fits.getdata(f)))


def test_one_of_several_images_of_a_name(tmp_path: Path) -> None:
    fits = pytest.importorskip("astropy.io.fits")
    chips = [fits.ImageHDU(np.full((6, 5), v), name="SCI", ver=v) for v in (1, 2)]
    fits.HDUList([fits.PrimaryHDU(), *chips]).writeto(tmp_path / "a.fits")
    with pytest.raises(UserError, match=r"2 images named SCI; dataset\.key can be SCI:1 \[6, 5\]"):
        open_measurements(tmp_path / "a.fits")
    held = open_measurements(tmp_path / "a.fits", reading=Reading(key="SCI:2"))
    assert (values(held) == 2).all()
    folder = write(held, tmp_path / "out")
    with fits.open(folder / "samples" / "a_01.fits") as units:
        assert len(units) == 2 and units["SCI", 2].data[0, 0] == 3


def test_scaled_numbers_of_fits(tmp_path: Path) -> None:
    fits = pytest.importorskip("astropy.io.fits")
    unit = fits.PrimaryHDU(0.5 * RNG.integers(-9, 99, (7, 6, 5)) + 20.0)
    unit.scale("int16", bscale=0.5, bzero=20.0)
    unit.writeto(tmp_path / "cube.fits")
    held = open_measurements(tmp_path / "cube.fits")
    write(held, tmp_path / "out", add=0.5)
    with fits.open(
        tmp_path / "out" / "samples" / "cube_01.fits", do_not_scale_image_data=True
    ) as f:
        assert f[0].data.dtype == np.dtype(">i2")
        assert (f[0].header["BSCALE"], f[0].header["BZERO"]) == (0.5, 20.0)
    array = fits.getdata(tmp_path / "out" / "samples" / "cube_01.fits")
    np.testing.assert_array_equal(array, fits.getdata(tmp_path / "cube.fits") + 0.5)


# NIfTI.


def example4d() -> Path:
    nibabel = pytest.importorskip("nibabel")
    file = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    if not file.is_file():
        pytest.skip("nibabel came without its tests' data")
    return file


@pytest.mark.parametrize(("dims", "shape"), [(2, (48, 1, 96, 128)), (None, (2, 1, 24, 96, 128))])
def test_a_diffusion_weighted_scan(
    dims: int | None, shape: tuple[int, ...], tmp_path: Path
) -> None:
    nibabel = pytest.importorskip("nibabel")
    file = example4d()
    held = open_measurements(file, reading=Reading(dims=dims))
    assert held.y.shape == shape and held.y.dtype == np.int16
    array = np.asarray(nibabel.load(file).dataobj)  # X, Y, Z, T
    if dims == 2:  # by Z, and then by T
        np.testing.assert_array_equal(held.y[np.array([7])][0, 0], array[:, :, 3, 1].T)
    else:
        np.testing.assert_array_equal(held.y[np.array([1])][0, 0], array[..., 1].T)
    old = nibabel.load(file)

    def read(path: Path) -> np.ndarray:
        image = nibabel.load(path)
        np.testing.assert_array_equal(image.affine, old.affine)
        assert image.header.get_zooms() == old.header.get_zooms()
        assert image.header.get_xyzt_units() == old.header.get_xyzt_units()
        assert image.header["qform_code"] == old.header["qform_code"]
        assert image.header["sform_code"] == old.header["sform_code"]
        assert bytes(image.header["descrip"]) == bytes(old.header["descrip"])
        return np.asarray(image.dataobj)

    check(held, tmp_path / "out", read)
    generated(held, tmp_path / "new", lambda path: np.asarray(nibabel.load(path).dataobj))


def test_a_scan_is_held_out_by_its_last_slices(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = MeasurementFiles(str(example4d()), dims=2, limit=20)
    train, heldout = source.measurement_sets(
        make_channel(Denoising(source.shape), GaussianNoise(20.0))
    )
    assert "is one file or series, whose last measurements are held out" in capsys.readouterr().err
    assert heldout.source.rows.tolist() == [18, 19] and len(train) == 18  # type: ignore[union-attr]


def test_scaled_numbers_of_nifti(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(
        RNG.integers(0, 99, (6, 5, 4), dtype=np.int16), np.diag([2, 2, 3, 1])
    )
    image.header.set_slope_inter(0.5, 10)
    image.to_filename(tmp_path / "y.nii")
    held = open_measurements(tmp_path / "y.nii", reading=Reading(dims=2))
    array = np.asarray(nibabel.load(tmp_path / "y.nii").dataobj)
    np.testing.assert_array_equal(values(held)[:, 0], array.T)
    write(held, tmp_path / "out", add=0.5)
    new = nibabel.load(tmp_path / "out" / "samples" / "y_01.nii")
    assert new.get_data_dtype() == np.int16
    assert (new.dataobj.slope, new.dataobj.inter) == (0.5, 10)
    np.testing.assert_array_equal(np.asarray(new.dataobj), array + 0.5)
    std = nibabel.load(tmp_path / "out" / "std" / "y.nii")
    assert std.get_data_dtype() == np.float32
    np.testing.assert_allclose(np.asarray(std.dataobj), 0.5 / 2**0.5, rtol=1e-6)


def test_the_affine_map_of_smaller_voxels(tmp_path: Path) -> None:
    """The corners of the space that is covered stay where they are."""
    nibabel = pytest.importorskip("nibabel")
    affine = np.array([[0, -2.0, 0, 5], [3, 0, 0, -7], [0, 0, 4, 1], [0, 0, 0, 1]])
    nibabel.Nifti1Image(np.zeros((6, 4, 5), "f4"), affine).to_filename(tmp_path / "y.nii")
    held = open_measurements(tmp_path / "y.nii", reading=Reading(dims=2))
    with SampleWriter(
        tmp_path / "out", held.format, (1, 8, 12), count=5, n=1, like=held.files
    ) as writer:
        writer.write(torch.zeros(5, 1, 1, 8, 12))
    new = nibabel.load(tmp_path / "out" / "samples" / "y_00.nii")
    assert new.shape == (12, 8, 5)
    for corner in itertools.product((0, 1), repeat=3):
        ends = [np.array([*(np.array(corner) * s - 0.5), 1]) for s in ((6, 4, 5), (12, 8, 5))]
        np.testing.assert_allclose(new.affine @ ends[1], affine @ ends[0], atol=1e-5)


# DICOM.


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_dicom(name: str, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    data = pytest.importorskip("pydicom.data")
    (tmp_path / "y").mkdir()
    old = pydicom.dcmread(data.get_testdata_file(name))
    for k in range(3):
        old.SOPInstanceUID = old.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        old.save_as(tmp_path / "y" / f"{k}.dcm")
    held = open_measurements(tmp_path / "y")
    slope, intercept = float(old.get("RescaleSlope", 1)), float(old.get("RescaleIntercept", 0))
    expected = old.pixel_array * slope + intercept
    np.testing.assert_array_equal(values(held)[1, 0], expected)
    assert held.groups is not None and len(np.unique(held.groups)) == 1  # one series
    write(held, tmp_path / "out")
    seen = set()
    for part in ("samples/0_00", "samples/1_00", "samples/0_01", "mean/0", "std/0"):
        new = pydicom.dcmread(tmp_path / "out" / f"{part}.dcm")
        again = new.pixel_array * float(new.get("RescaleSlope", 1))
        again = again + float(new.get("RescaleIntercept", 0))
        if part.startswith("samples"):
            assert new.pixel_array.dtype == old.pixel_array.dtype
            assert (new.BitsStored, new.PixelRepresentation) == (
                old.BitsStored, old.PixelRepresentation,
            )  # fmt: skip
            np.testing.assert_array_equal(again, expected + int(part[-1]))
        else:  # 16 bits of the range
            exact = expected + 0.5 if part == "mean/0" else np.full(expected.shape, 0.5**0.5)
            step = (exact.max() - exact.min()) / 65535
            assert np.abs(again - exact).max() <= 0.51 * step + 1e-6
        assert new.PatientName == old.PatientName and new.PixelSpacing == old.PixelSpacing
        assert list(new.ImageType)[:2] == ["DERIVED", "SECONDARY"]
        source = pydicom.dcmread(tmp_path / "y" / f"{part.split('/')[1][0]}.dcm")
        assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert new.SOPInstanceUID == new.file_meta.MediaStorageSOPInstanceUID
        assert "diffem: posterior" in new.DerivationDescription
        assert new.SeriesInstanceUID != old.SeriesInstanceUID
        seen.add((part, new.SOPInstanceUID, new.SeriesInstanceUID))
    assert len({uid for _, uid, _ in seen}) == 5
    series = {part: uid for part, _, uid in seen}
    assert series["samples/0_00"] == series["samples/1_00"] != series["samples/0_01"]

    def read(file: Path) -> np.ndarray:
        new = pydicom.dcmread(file)
        scaled = new.pixel_array * float(new.get("RescaleSlope", 1))
        return (scaled + float(new.get("RescaleIntercept", 0))).astype(held.format.dtype)

    step = np.ptp(expected) / 65535 if name.startswith("CT") else 0  # floats in 16 bits
    generated(held, tmp_path / "new", read, step=step)


def series_of(folder: Path, count: int, *, step: float = 2.5, name: str = "") -> list[np.ndarray]:
    """Writes a series of slices whose names are not in the order of their positions.

    Each has a rescale slope of its own, as those of PET have, and an oblique plane.
    """
    pydicom = pytest.importorskip("pydicom")
    data = pytest.importorskip("pydicom.data")
    folder.mkdir(exist_ok=True)
    held = pydicom.dcmread(data.get_testdata_file("CT_small.dcm"))
    held.SeriesInstanceUID = pydicom.uid.generate_uid()
    held.ImageOrientationPatient = [0.6, 0.8, 0, 0, 0, 1]  # whose normal is (0.8, -0.6, 0)
    expected = []
    for k in range(count):
        raw = RNG.integers(0, 999, (6, 5)).astype(np.int16)
        held.set_pixel_data(raw, "MONOCHROME2", 16)
        held.RescaleSlope, held.RescaleIntercept = 0.5 * (k + 1), -8
        held.ImagePositionPatient = [0.8 * step * k + 3, -0.6 * step * k, -7]
        held.InstanceNumber = 100 - k  # not the order of the positions
        held.save_as(folder / f"{name}{(7 * k) % 31:02d}.dcm")
        expected.append(raw * (0.5 * (k + 1)) - 8)
    return expected


def test_a_series_of_dicom_is_a_volume(tmp_path: Path) -> None:
    """By position, whatever the names say; written as slices, each with its own header."""
    expected = [series_of(tmp_path / "y", 4, name=name) for name in "ab"]
    flat = open_measurements(tmp_path / "y")
    assert flat.y.shape == (8, 1, 6, 5)
    held = open_measurements(tmp_path / "y", reading=Reading(dims=3))
    assert held.y.shape == (2, 1, 4, 6, 5) and held.names == ("a00", "b00")
    assert held.groups is None  # each volume is a series
    for volume, slices in zip(values(held), expected, strict=True):
        np.testing.assert_array_equal(volume[0], np.stack(slices))
    limited = open_measurements(tmp_path / "y", reading=Reading(dims=3), limit=1)
    assert limited.y.shape == (1, 1, 4, 6, 5)

    pydicom = pytest.importorskip("pydicom")
    write(held, tmp_path / "out", add=8)
    ids = set()
    for k in range(4):
        file = f"b{7 * k:02d}.dcm"
        old = pydicom.dcmread(tmp_path / "y" / file)
        new = pydicom.dcmread(tmp_path / "out" / "samples" / "b00_01" / file)
        again = new.pixel_array * float(new.RescaleSlope) + float(new.RescaleIntercept)
        assert np.abs(again - (expected[1][k] + 8)).max() <= old.RescaleSlope / 2
        assert new.RescaleSlope == old.RescaleSlope and new.PixelSpacing == old.PixelSpacing
        assert new.ImagePositionPatient == old.ImagePositionPatient
        assert new.InstanceNumber == old.InstanceNumber
        assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
        ids.add(new.SeriesInstanceUID)
    assert len(ids) == 1  # a volume is a series
    scalings = set()
    for file in (tmp_path / "out" / "mean" / "a00").iterdir():
        mean = pydicom.dcmread(file)
        scalings.add((mean.RescaleSlope, mean.RescaleIntercept))
    assert len(scalings) == 1 and len(list((tmp_path / "out" / "std").iterdir())) == 2

    again = open_measurements(tmp_path / "out" / "samples" / "a00_00", reading=Reading(dims=3))
    np.testing.assert_array_equal(values(again), values(held)[:1])


def test_generated_volumes_are_series_of_dicom(tmp_path: Path) -> None:
    series_of(tmp_path / "y", 3)
    held = open_measurements(tmp_path / "y", reading=Reading(dims=3))
    x = torch.from_numpy(values(held).astype(np.float64))
    write_generated(tmp_path / "new", held.format, x.shape[1:], [x], count=1)
    new = open_measurements(tmp_path / "new" / "generated_00000", reading=Reading(dims=3))
    step = float(np.ptp(x.numpy())) / 65535
    np.testing.assert_allclose(values(new), x.numpy(), rtol=0, atol=0.51 * step + 1e-3)


def test_slices_that_are_no_volume_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pydicom = pytest.importorskip("pydicom")

    def opened(name: str) -> Held:
        return open_measurements(tmp_path / name, reading=Reading(dims=3))

    def changed(name: str, number: int, **tags: object) -> None:
        series_of(tmp_path / name, 4)
        file = tmp_path / name / f"{7 * number:02d}.dcm"
        held = pydicom.dcmread(file)
        for tag, value in tags.items():
            setattr(held, tag, value)
        held.save_as(file)

    series_of(tmp_path / "uneven", 4)
    (tmp_path / "uneven" / "07.dcm").unlink()
    opened("uneven")
    assert "2.5 to 5 mm apart (is one missing?)" in " ".join(capsys.readouterr().err.split())
    changed("twice", 1, ImagePositionPatient=[3, 0, -7])
    with pytest.raises(UserError, match=r"have the same place; give each volume"):
        opened("twice")
    changed("turned", 1, ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    with pytest.raises(UserError, match="lie in other directions"):
        opened("turned")
    changed("nameless", 2, SeriesInstanceUID="")
    with pytest.raises(UserError, match="no grey slice of a series"):
        opened("nameless")
    changed("other size", 1, Rows=5, Columns=6)
    with pytest.raises(UserError, match=r"is of \[6, 5\] pixels, and 07.dcm of the same series"):
        opened("other size")
    changed("numbers", 1, ImagePositionPatient=None)
    assert values(opened("numbers")).shape == (1, 1, 4, 6, 5)  # by the number of each
    changed("unordered", 1, ImagePositionPatient=None, InstanceNumber=None)
    with pytest.raises(UserError, match="neither positions nor numbers"):
        opened("unordered")
    (tmp_path / "beside").mkdir()
    series_of(tmp_path / "beside" / "measurements", 3)
    series_of(tmp_path / "beside" / "truth", 3)
    with pytest.raises(UserError, match="has truth beside slices of volumes"):
        opened("beside")


def test_frames_and_colours_of_dicom(tmp_path: Path) -> None:
    """Frames are measurements, and a file is decoded once for all of them."""
    pydicom = pytest.importorskip("pydicom")
    data = pytest.importorskip("pydicom.data")
    held = pydicom.dcmread(data.get_testdata_file("MR_small.dcm"))
    frames = RNG.integers(0, 99, (4, 6, 5), dtype=np.uint16)
    colours = RNG.integers(0, 99, (6, 5, 3), dtype=np.uint8)
    for name, array, kind in (("f", frames, "MONOCHROME2"), ("c", colours, "RGB")):
        (tmp_path / name).mkdir()
        held.set_pixel_data(array, kind, 8 * array.dtype.itemsize)
        held.save_as(tmp_path / name / "a.dcm")
        read = open_measurements(tmp_path / name)
        expected = frames[:, None] if name == "f" else np.moveaxis(colours, -1, 0)[None]
        np.testing.assert_array_equal(values(read), expected)
        folder = write(read, tmp_path / f"{name} out")
        new = pydicom.dcmread(folder / "samples" / "a_01.dcm")
        assert new.PhotometricInterpretation == kind
        np.testing.assert_array_equal(new.pixel_array, array + 1)


def test_values_outside_a_scaled_range_are_clipped_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pydicom = pytest.importorskip("pydicom")
    data = pytest.importorskip("pydicom.data")
    (tmp_path / "y").mkdir()
    file = tmp_path / "y" / "a.dcm"
    file.write_bytes(Path(data.get_testdata_file("CT_small.dcm")).read_bytes())
    held = open_measurements(tmp_path / "y")
    write(held, tmp_path / "out", add=1e6)
    assert "outside the range of the files' whole numbers and were clipped" in (
        capsys.readouterr().err
    )
    new = pydicom.dcmread(tmp_path / "out" / "samples" / "a_01.dcm")
    assert (new.pixel_array == 2**15 - 1).all()


# MRC.


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "held_shape"),
    [
        ("image", (6, 5), "f4", (2, 1, 6, 5)),
        ("stack", (4, 6, 5), "i2", (8, 1, 6, 5)),
        ("volume", (4, 6, 5), "f4", (2, 1, 4, 6, 5)),
        ("complex", (6, 5), "c8", (2, 2, 6, 5)),
    ],
)
def test_mrc(
    name: str, shape: tuple[int, ...], dtype: str, held_shape: tuple[int, ...], tmp_path: Path
) -> None:
    mrcfile = pytest.importorskip("mrcfile")
    (tmp_path / "y").mkdir()
    for k in range(2):
        array = RNG.integers(0, 99, shape).astype(dtype)
        with mrcfile.new(tmp_path / "y" / f"{k}.mrc", data=array) as file:
            if name == "stack":
                file.set_image_stack()
            file.voxel_size = PIXEL
            file.header.origin.x = 7.0
            file.add_label("a microscope")
    held = open_measurements(tmp_path / "y")
    assert held.y.shape == held_shape

    def read(path: Path) -> np.ndarray:
        with mrcfile.open(path) as file:
            assert file.is_image_stack() == (name == "stack")
            assert file.is_volume() == (name == "volume")
            assert float(file.voxel_size.x) == float(file.voxel_size.y) == PIXEL
            assert file.header.origin.x == 7 and "a microscope" in file.get_labels()
            return file.data.copy()

    if name == "complex":
        write(held, tmp_path / "out")
        assert read(tmp_path / "out" / "samples" / "0_01.mrc").dtype == np.complex64
        np.testing.assert_array_equal(
            read(tmp_path / "out" / "samples" / "0_00.mrc"), read(tmp_path / "y" / "0.mrc")
        )
    else:
        check(held, tmp_path / "out", read)
    generated(held, tmp_path / "new", lambda f: mrcfile.open(f).data.copy())


# Zarr.


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr(version: int, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    (tmp_path / "y").mkdir()
    scale = {"type": "scale", "scale": [1, 1, 2.0, PIXEL, PIXEL]}
    axes = [{"name": n} for n in "tczyx"]
    image = {
        "axes": [{**a, "unit": "micrometer"} if a["name"] in "zyx" else a for a in axes],
        "datasets": [
            {"path": str(level), "coordinateTransformations": [scale]} for level in range(2)
        ],
    }
    for k in range(2):
        group = zarr.open_group(tmp_path / "y" / f"{k}.ome.zarr", mode="w", zarr_format=version)
        group.attrs.update(
            {"multiscales": [image], "omero": {"channels": [{"label": "DAPI"}]}}
            if version == 2
            else {"ome": {"version": "0.5", "multiscales": [image]}}
        )
        for level, side in enumerate((6, 3)):
            array = group.create_array(
                str(level), shape=(2, 3, 4, side, side), dtype="uint16", chunks=(1, 1, 4, 3, 3)
            )
            array[...] = RNG.integers(0, 999, array.shape)
    held = open_measurements(tmp_path / "y")
    assert held.y.shape == (4, 3, 4, 6, 6)

    def read(path: Path) -> np.ndarray:
        group = zarr.open_group(path, mode="r")
        attributes = dict(group.attrs)
        found = attributes.get("ome", attributes)["multiscales"][0]
        assert found["axes"] == image["axes"]
        assert found["datasets"][0]["coordinateTransformations"] == [scale]
        assert version == 3 or attributes["omero"] == {"channels": [{"label": "DAPI"}]}
        assert group["0"].chunks == (1, 1, 4, 3, 3)
        assert group.metadata.zarr_format == version
        return group["0"][...]

    check(held, tmp_path / "out", read)
    found = zarr.open_group(tmp_path / "out" / "samples" / "0_00.ome.zarr", mode="r")
    assert [name for name, _ in found.members()] == ["0"]


def test_a_plain_zarr_array(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(
        str(tmp_path / "y.zarr"), shape=(9, 6, 5), dtype="float32", attributes={"unit": "K"}
    )
    array[...] = RNG.normal(size=array.shape)
    held = open_measurements(tmp_path / "y.zarr")
    assert held.y.shape == (9, 1, 6, 5) and held.groups is None

    def read(path: Path) -> np.ndarray:
        store = zarr.open_array(path, mode="r")
        assert dict(store.attrs) == {"unit": "K"}
        return store[...]

    check(held, tmp_path / "out", read)
    generated(held, tmp_path / "new", lambda path: zarr.open_array(path, mode="r")[...])


# Real files of packages.


@pytest.mark.parametrize("package", ["pydicom", "nibabel", "astropy"])
@pytest.mark.filterwarnings("ignore")  # of odd headers, which the files are there for
def test_real_files_come_back_or_are_refused_in_one_sentence(package: str, tmp_path: Path) -> None:
    module = pytest.importorskip(package)
    suffixes = (".dcm", ".fits", ".nii", ".nii.gz")
    files = [f for f in Path(module.__file__).parent.rglob("*") if f.name.endswith(suffixes)]
    same = 0
    for number, file in enumerate(sorted(f for f in files if f.stat().st_size < 300_000)):
        try:
            held = open_measurements(file)
            y = values(held)
            if y.size > 2**20 or not np.isfinite(y).all():
                continue
            folder = write(held, tmp_path / str(number), add=0)
            again = values(open_measurements(next((folder / "samples").glob("*_00*"))))
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500
            continue
        # To float32, which scaled numbers are read as.
        np.testing.assert_allclose(again, y, rtol=1e-6, err_msg=str(file))
        same += 1
    if not files:
        pytest.skip(f"{package} came without its test data")
    assert same > 0


# PNG, JPEG and arrays.


def test_jpeg_images_are_written_as_png(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "y").mkdir()
    for k in range(2):
        image = Image.fromarray(RNG.integers(0, 256, (16, 16), dtype=np.uint8))
        image.save(tmp_path / "y" / f"{k}.jpg", dpi=(300, 300))
    held = open_measurements(tmp_path / "y")
    assert "JPEG images, whose compression is a corruption of its own" in capsys.readouterr().err
    write(held, tmp_path / "out", add=0)
    for k in range(2):
        with Image.open(tmp_path / "out" / "samples" / f"{k}_00.png") as new:
            with Image.open(tmp_path / "y" / f"{k}.jpg") as old:
                np.testing.assert_array_equal(np.asarray(new), np.asarray(old))
            # PNG has whole pixels a metre.
            assert new.format == "PNG" and abs(new.info["dpi"][0] - 300) < 0.02


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("shape", [(9, 6, 5), (9, 3, 6, 5), (9, 7)])
def test_complex_arrays(suffix: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    y = (RNG.normal(size=shape) + 1j * RNG.normal(size=shape)).astype("c8")
    if suffix == ".npy":
        np.save(tmp_path / "y.npy", y)
    else:
        np.savez(tmp_path / "y.npz", y=y)
    held = open_measurements(tmp_path / f"y{suffix}")
    channels = shape[1] if len(shape) == 4 else 1
    assert held.y.shape == (9, 2 * channels, *shape[1 + (len(shape) == 4) :])
    grey = y if len(shape) == 4 else y[:, None]
    np.testing.assert_array_equal(
        values(held), np.concatenate([np.real(grey), np.imag(grey)], axis=1)
    )
    source = MeasurementFiles(str(tmp_path / f"y{suffix}"))
    assert source.shape == held.y.shape[1:]
    write(held, tmp_path / "out")
    if suffix == ".npz":
        with np.load(tmp_path / "out" / "samples.npz") as found:
            samples, std = found["samples"], found["std"]
    else:
        samples, std = (np.load(tmp_path / "out" / f"{n}.npy") for n in ("samples", "std"))
    assert samples.dtype == np.complex64 and std.dtype == np.float32 and std.shape == y.shape
    np.testing.assert_array_equal(samples[:, 0], y)
    np.testing.assert_allclose(std, 1, rtol=1e-5)  # the root of two variances of 1/2


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    (tmp_path / "y").mkdir()
    for k in range(3):
        np.save(tmp_path / "y" / f"m{k}.npy", RNG.normal(size=(6, 5, 3)).astype("f4"))
    held = open_measurements(tmp_path / "y", reading=Reading(axes="YXC"))
    assert held.y.shape == (3, 3, 6, 5)
    check(held, tmp_path / "out", np.load)


# Folders.


def folders(path: Path, **parts: np.ndarray) -> Path:
    for name, arrays in parts.items():
        (path / name).mkdir(parents=True)
        for i, array in enumerate(arrays):
            np.save(path / name / f"m{i}.npy", array)
    return path


Y = RNG.normal(100, 10, (9, 6, 5)).astype("f4")
MASKS = RNG.random((9, 6, 5)) < 0.7


def test_what_lies_beside_measurements(tmp_path: Path) -> None:
    std = np.linspace(5, 9, 9).astype("f4")
    folder = folders(
        tmp_path / "y", measurements=Y, masks=MASKS, truth=Y + 1,
        std=np.broadcast_to(std[:, None, None], Y.shape),
    )  # fmt: skip
    source = MeasurementFiles(str(folder), range=[0, 200])
    channel = make_channel(Mask(source.shape, rho=0.5), GaussianNoise((5.0, 9.0)))
    train, _ = source.measurement_sets(channel)
    rows = train.source.rows.numpy()  # type: ignore[union-attr]
    y, mask, noise = train.select(slice(None))
    np.testing.assert_array_equal(mask[:, 0].numpy(), MASKS[rows])
    assert (y[mask == 0] == 0).all()
    np.testing.assert_allclose(noise[:, 0], std[rows] / 100, rtol=1e-6)
    assert train.truth is not None
    np.testing.assert_allclose(train.scale.denormalise(train.truth)[:, 0], Y[rows] + 1, rtol=1e-5)


def test_masks_are_where_they_are_not_zero_whatever_the_operator(tmp_path: Path) -> None:
    lines = 255 * RNG.integers(0, 2, (9, 1, 5), dtype=np.uint8)  # as PNG files of masks are
    y = np.concatenate([Y, Y], axis=1).reshape(9, 2, 6, 5)
    folder = folders(tmp_path / "y", measurements=y, masks=lines)
    channel = make_channel(Fourier((1, 6, 5), acceleration=2), GaussianNoise(1.0))
    train, _ = MeasurementFiles(str(folder), shape=[1, 6, 5], range=[0, 1]).measurement_sets(
        channel
    )
    rows = train.source.rows.numpy()  # type: ignore[union-attr]
    assert torch.equal(
        train.select(slice(None)).operator[:, 0, 0], torch.tensor(lines[rows, 0] > 0).float()
    )
    np.save(folder / "masks" / "m3.npy", np.full((1, 5), np.nan, "f4"))
    for i in set(range(9)) - {3}:
        np.save(folder / "masks" / f"m{i}.npy", np.ones((1, 5), "f4"))
    with pytest.raises(UserError, match="operator holds NaN"):
        MeasurementFiles(str(folder), shape=[1, 6, 5], range=[0, 1]).measurement_sets(channel)


def test_noise_of_each_pixel_is_not_ignored(tmp_path: Path) -> None:
    folder = folders(tmp_path / "y", measurements=Y, std=np.abs(Y))
    for std in (1.0, (1.0, 200.0)):
        channel = make_channel(Denoising((1, 6, 5)), GaussianNoise(std))
        with pytest.raises(UserError, match=r"differs between the pixels .* corruption=weighting"):
            MeasurementFiles(str(folder)).measurement_sets(channel)
    weighting = make_channel(Weighting((1, 6, 5), ratio=1.0), GaussianNoise(9.0))
    train, _ = MeasurementFiles(str(folder)).measurement_sets(weighting)
    rows = train.source.rows.numpy()  # type: ignore[union-attr]
    weight = train.select(slice(None)).operator[:, 0].numpy()
    np.testing.assert_allclose(weight, 9.0 / np.abs(Y[rows]), rtol=1e-5)


def test_operators_beside_measurements(tmp_path: Path) -> None:
    phi = RNG.normal(size=(9, 4, 3))
    folder = folders(tmp_path / "y", measurements=Y, operator=phi)
    held = open_measurements(folder)
    assert held.operator is not None
    np.testing.assert_array_equal(held.operator[np.array([8, 0])], phi[[8, 0]])


def test_a_mask_of_all_pages(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    for name in ("measurements", "masks"):
        (tmp_path / name).mkdir()
    for k in range(2):
        pages = RNG.integers(0, 99, (5, 8, 8), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "measurements" / f"{k}.tif", pages, photometric="minisblack")
        Image.fromarray(RNG.random((8, 8)) < 0.5).save(tmp_path / "masks" / f"{k}.png")
    held = open_measurements(tmp_path)
    assert held.y.shape == (10, 1, 8, 8) and held.operator is not None
    with Image.open(tmp_path / "masks" / "1.png") as mask:
        np.testing.assert_array_equal(held.operator[np.array([7])][0, 0], np.asarray(mask))
    two = RNG.random((2, 8, 8)) < 0.5
    tifffile.imwrite(tmp_path / "masks" / "1.tif", two, photometric="minisblack")
    (tmp_path / "masks" / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.tif holds 2 entries, and .*1\.tif 5; give one for"):
        open_measurements(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "masks" / "m3.npy").unlink(), "masks has no file for m3 of measurements"),
        (lambda f: (f / "measurements" / "m3.npy").unlink(), "has m3, and measurements has no"),
        (lambda f: (f / "mask").mkdir(), "has a folder mask; beside measurements there may be"),
        (lambda f: (f / "masks").rename(f / "operator"), None),
        (lambda f: np.save(f / "masks" / "m3.npy", MASKS[0, :4]), "but m0.npy is bool of shape"),
        (lambda f: folders(f, operator=MASKS), "has masks and operator, and a mask is an"),
    ],
)
def test_names_that_do_not_match(
    change: Callable[[Path], object], sentence: str | None, tmp_path: Path
) -> None:
    folder = folders(tmp_path / "y", measurements=Y, masks=MASKS)
    change(folder)
    if sentence is None:
        assert open_measurements(folder).operator is not None
        return
    with pytest.raises(UserError) as error:
        open_measurements(folder)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_files_of_several_formats(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "notes.npy", np.zeros(3))  # no measurement, beside images
    assert len(open_measurements(tmp_path).y) == 1
    (tmp_path / "b.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"files of several formats, a\.png and b\.h5; keep one"):
        open_measurements(tmp_path)
    with pytest.raises(UserError, match=r"is no folder and no file of \.npz, \.png, \.tif"):
        (tmp_path / "c.txt").write_text("mine")
        open_measurements(tmp_path / "c.txt")
    with pytest.raises(UserError, match=r"dataset\.key=a has no effect on \.png files"):
        open_measurements(tmp_path / "a.png", reading=Reading(key="a"))


def test_held_out_by_file(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    for k in range(6):
        pages = RNG.integers(0, 99, (3 + k, 8, 8), dtype=np.uint16)
        tifffile.imwrite(tmp_path / f"{k}.tif", pages, photometric="minisblack")
    source = MeasurementFiles(str(tmp_path), heldout=0.3)
    train, heldout = source.measurement_sets(
        make_channel(Denoising(source.shape), GaussianNoise(5.0))
    )
    files = source.held.groups
    assert files is not None and len(train) + len(heldout) == 33 and len(heldout) >= 10
    sides = [set(files[m.source.rows.numpy()]) for m in (train, heldout)]  # type: ignore[union-attr]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(range(6))


# Damage, and missing packages.

MADE = (".tif", ".h5", ".fits", ".nii", ".dcm", ".mrc")


def make(folder: Path, suffix: str) -> Path:
    """Writes a folder with one file of a format, 6 × 5."""
    array = RNG.integers(0, 99, (6, 5)).astype("u2")
    folder.mkdir()
    file = folder / f"a{suffix}"
    if suffix == ".tif":
        pytest.importorskip("tifffile").imwrite(file, array)
    elif suffix == ".h5":
        with pytest.importorskip("h5py").File(file, "w") as held:
            held["y"] = array[None]
    elif suffix == ".fits":
        pytest.importorskip("astropy.io.fits").PrimaryHDU(array).writeto(file)
    elif suffix == ".nii":
        nibabel = pytest.importorskip("nibabel")
        nibabel.Nifti1Image(array[..., None], np.eye(4)).to_filename(file)
    elif suffix == ".dcm":
        data = pytest.importorskip("pydicom.data")
        file.write_bytes(Path(data.get_testdata_file("MR_small.dcm")).read_bytes())
    elif suffix == ".mrc":
        pytest.importorskip("mrcfile").new(file, data=array).close()
    elif suffix == ".zarr":
        pytest.importorskip("zarr").save_array(str(file), array[None])
    return file


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "gone"])
@pytest.mark.parametrize("suffix", MADE)
def test_damage_is_one_sentence(suffix: str, damage: str, tmp_path: Path) -> None:
    file = make(tmp_path / "y", suffix)
    held = open_measurements(file)
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        end = 3000 if suffix == ".dcm" else 30  # what may be missing of DICOM is padding
        new = {"cut": content[:-end], "empty": b"", "text": b"no image " * 100}[damage]
        file.write_bytes(new)
    with pytest.raises(UserError) as error:
        held.y[np.array([0])]
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert ("put it back" in str(error.value)) == (damage == "gone")
    with pytest.raises(UserError) as error:  # from the start
        held = open_measurements(file)
        held.y[np.array([0])]
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_few_files_are_open_and_one_that_changed_is_read_anew(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    stacks = RNG.integers(0, 99, (12, 3, 8, 8), dtype=np.uint16)
    for k, pages in enumerate(stacks):
        tifffile.imwrite(tmp_path / f"{k:02d}.tif", pages, photometric="minisblack")
    held = open_measurements(tmp_path)
    np.testing.assert_array_equal(values(held)[:, 0], stacks.reshape(36, 8, 8))
    if (links := Path("/proc/self/fd")).is_dir():
        opened = {os.path.realpath(f) for f in links.iterdir()}
        assert 0 < len([f for f in opened if f.startswith(str(tmp_path))]) <= OPEN
    tifffile.imwrite(tmp_path / "11.tif", stacks[11] + 1, photometric="minisblack")
    np.testing.assert_array_equal(held.y[np.array([35])][0, 0], stacks[11, 2] + 1)
    tifffile.imwrite(tmp_path / "11.tif", stacks[11, :2], photometric="minisblack")
    with pytest.raises(UserError, match=r"11\.tif holds 2 entries, and held 3 before"):
        held.y[np.array([35])]
    (tmp_path / "11.tif").unlink()
    with pytest.raises(UserError, match=r"11\.tif cannot be read .*put it back"):
        held.y[np.array([35])]
    del held
    gc.collect()
    if links.is_dir():
        opened = {os.path.realpath(f) for f in links.iterdir()}
        assert not [f for f in opened if f.startswith(str(tmp_path))]


def test_a_damaged_chunk_of_a_zarr_array(tmp_path: Path) -> None:
    file = make(tmp_path / "y", ".zarr")
    held = open_measurements(file)
    (chunk,) = [f for f in file.rglob("*") if f.is_file() and not f.name.endswith(".json")]
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"a\.zarr cannot be read"):
        held.y[np.array([0])]
    (file / "zarr.json").unlink()
    with pytest.raises(UserError, match=r"a\.zarr cannot be read"):
        open_measurements(file)


@pytest.mark.parametrize("suffix", [s for s, k in KNOWN.items() if k.extra and "tif" not in s])
def test_a_missing_package_is_one_sentence(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = KNOWN[suffix].extra
    assert extra is not None
    monkeypatch.setitem(sys.modules, extra.module, None)
    file = tmp_path / f"a{suffix}"
    if suffix.endswith(".zarr"):
        file.mkdir()
    else:
        file.write_bytes(b"")
    with pytest.raises(UserError) as error:
        open_measurements(file)
    assert (
        f"a{suffix} needs the package {extra.package}, which is not installed: pip install "
        in (str(error.value))
    )
    assert f"'diffem[{extra.extra}]'" in str(error.value)
