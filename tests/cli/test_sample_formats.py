"""Show 1 of issue 13 by the commands: what `sample` writes has the input's format and metadata."""

from pathlib import Path

import numpy as np
import pytest
from test_sample import STD, TINY, measurements, run, train

from diffem.cli import generate, sample


def stacks(folder: Path, suffix: str) -> Path:
    """Writes three files of ten measurements each, with an array of another shape in each."""
    folder.mkdir()
    for k, frames in enumerate(measurements(30).reshape(3, 10, 8, 8)):
        file = folder / f"day {k}{suffix}"
        if suffix == ".h5":
            with pytest.importorskip("h5py").File(file, "w") as new:
                new["camera/frames"], new["camera/dark"] = frames, np.zeros((2, 8, 8))
                new["camera/frames"].attrs["unit"] = "ADU"
        else:
            pytest.importorskip("tifffile").imwrite(
                file, frames, imagej=True, metadata={"axes": "TYX", "unit": "um"}
            )
    return folder


def test_a_run_remembers_which_array_it_learned_from(tmp_path: Path) -> None:
    h5py, tifffile = pytest.importorskip("h5py"), pytest.importorskip("tifffile")
    given, run_dir = stacks(tmp_path / "given", ".h5"), tmp_path / "run"
    train(
        *("dataset=measurements", f"dataset.path={given}", "dataset.key=camera/frames"),
        *("corruption=denoising", f"corruption.noise.std={STD}", f"run_dir={run_dir}", *TINY),
    )
    done = run(sample.main, run_dir, "--input", given, "--n", 2, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    for part, dtype in (("samples/day 2_01", "u2"), ("mean/day 2", "f4"), ("std/day 2", "f4")):
        with h5py.File(tmp_path / "out" / f"{part}.h5") as file:
            array = file["camera/frames"]
            assert array.shape == (10, 8, 8) and array.dtype == dtype
            assert array.attrs["unit"] == "ADU"
    with h5py.File(tmp_path / "out" / "mean" / "day 2.h5") as file:
        mean = file["camera/frames"][...]
    # They belong to their measurements: the images differ by 9,600 on average.
    assert np.abs(mean - measurements(30)[20:]).mean() < 3 * STD
    # Of other files, other settings.
    other = stacks(tmp_path / "other", ".tif")
    done = run(sample.main, run_dir, "--input", other, "--n", 2, "--out", tmp_path / "tiff")
    assert done.code == 0, done.err
    with tifffile.TiffFile(tmp_path / "tiff" / "samples" / "day 0_00.tif") as tif:
        assert tif.is_imagej and tif.series[0].axes == "TYX"
        assert tif.imagej_metadata["unit"] == "um"
        assert tif.asarray().dtype == np.uint16 and tif.asarray().shape == (10, 8, 8)
    done = run(generate.main, run_dir, "--count", 5, "--out", tmp_path / "new")
    assert done.code == 0, done.err
    with h5py.File(tmp_path / "new" / "generated.h5") as file:
        assert file["camera/frames"].shape == (5, 8, 8) and file["camera/frames"].dtype == "u2"
    done = run(
        sample.main, run_dir, "--input", given, "--key", "none", "--out", tmp_path / "never"
    )
    assert done.code == 1 and "has no array none; --key can be camera/dark" in done.err


def test_series_of_dicom_are_learned_from_as_volumes(tmp_path: Path) -> None:
    """From slices to slices: a run of volumes, with its figures, samples and prior."""
    pydicom = pytest.importorskip("pydicom")
    data = pytest.importorskip("pydicom.data")
    held = pydicom.dcmread(data.get_testdata_file("CT_small.dcm"))
    given, run_dir, rng = tmp_path / "given", tmp_path / "run", np.random.default_rng(0)
    given.mkdir()
    for volume in range(5):
        held.SeriesInstanceUID = pydicom.uid.generate_uid()
        for k in range(8):
            slice_ = rng.normal(1000, 50, (8, 8)) + 300 * (k > 3)
            held.set_pixel_data(slice_.astype(np.int16), "MONOCHROME2", 16)
            held.ImagePositionPatient = [0, 0, 2.5 * k]
            held.save_as(given / f"{volume}_{9 - k}.dcm")
    train(
        *("dataset=measurements", f"dataset.path={given}", "dataset.dims=3", f"run_dir={run_dir}"),
        *("corruption=denoising", "corruption.noise.std=50", "dataset.heldout=0.4", *TINY),
        *("em.batch_size=3", "em.chunk_size=3", "metric.subset=3", "init.iterations=2"),
    )
    done = run(sample.main, run_dir, "--input", given, "--n", 2, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    mean = []
    for k in range(8):  # volumes are named after their first slice
        name = f"3_{9 - k}.dcm"
        new = pydicom.dcmread(tmp_path / "out" / "mean" / "3_9" / name)
        old = pydicom.dcmread(given / name)
        assert new.ImagePositionPatient == old.ImagePositionPatient
        mean.append(float(new.RescaleSlope) * new.pixel_array + float(new.RescaleIntercept))
    y = np.stack([pydicom.dcmread(given / f"3_{9 - k}.dcm").pixel_array for k in range(8)])
    # In the order of the slices, and in their units after the rescale intercept of -1024: upside
    # down it would be off by 300 everywhere.
    assert np.abs(np.stack(mean) - (y - 1024)).mean() < 3 * 50
    done = run(generate.main, run_dir, "--count", 1, "--out", tmp_path / "new")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "new" / "generated_00000").iterdir())) == 8
