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
    assert done.code == 1 and "has no array none; dataset.key can be camera/dark" in done.err
