"""Samples are written in the measurements' own form, and a failed write leaves nothing."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffem.data.format import Format, SampleWriter, write_generated
from diffem.runtime.errors import UserError

N, S = 5, 3
GREY, RGB = (1, 4, 6), (3, 4, 6)


def samples(shape: tuple[int, ...], low: float = 0, high: float = 200) -> torch.Tensor:
    values = torch.rand(N, S, *shape, generator=torch.Generator().manual_seed(0)).double()
    return low + (high - low) * values


def write(folder: Path, form: Format, x: torch.Tensor, names: list[str] | None = None) -> None:
    with SampleWriter(folder, form, x.shape[2:], count=N, n=x.shape[1], like=names) as writer:
        writer.write(x[:2])
        writer.write(x[2:])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_grey_images(suffix: str, dtype: str, tmp_path: Path) -> None:
    form, x, names = Format(suffix, dtype, False), samples(GREY), [f"é {i}" for i in range(N)]
    if suffix == ".png" and dtype in ("int32", "float32"):
        with pytest.raises(UserError, match=r"cannot be written as \.png images"):
            write(tmp_path / "out", form, x, names)
        return
    write(tmp_path / "out", form, x, names)
    for i, name in enumerate(names):
        for s in range(S):
            with Image.open(tmp_path / "out" / "samples" / f"{name}_{s:02d}{suffix}") as image:
                found = np.asarray(image)
            expected = x[i, s, 0] if dtype == "float32" else x[i, s, 0].round()
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, expected.numpy().astype(dtype))
        for part, expected in (("mean", x[i].mean(dim=0)), ("std", x[i].std(dim=0))):
            with Image.open(tmp_path / "out" / part / f"{name}.tif") as image:
                np.testing.assert_allclose(np.asarray(image), expected[0], rtol=1e-6)
    assert len(list((tmp_path / "out").rglob("*.*"))) == N * (S + 2)


def test_rgb_images(tmp_path: Path) -> None:
    x = samples(RGB)
    write(tmp_path / "out", Format(".png", "uint8", True), x)
    with Image.open(tmp_path / "out" / "samples" / "00004_02.png") as image:
        np.testing.assert_array_equal(np.asarray(image), x[4, 2].round().permute(1, 2, 0))
    mean = np.load(tmp_path / "out" / "mean" / "00004.npy")
    np.testing.assert_allclose(mean, x[4].mean(dim=0).permute(1, 2, 0), rtol=1e-6)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("shape", "channel_axis", "expected"),
    [(GREY, False, (4, 6)), (GREY, True, GREY), (RGB, True, RGB), ((7,), False, (7,))],
)
@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64", "float16", "float64", "longdouble"])
def test_arrays(
    suffix: str,
    shape: tuple[int, ...],
    channel_axis: bool,
    expected: tuple[int, ...],
    dtype: str,
    tmp_path: Path,
) -> None:
    x = samples(shape)
    write(tmp_path / "out", Format(suffix, dtype, channel_axis), x)
    if suffix == ".npz":
        assert [f.name for f in (tmp_path / "out").iterdir()] == ["samples.npz"]
        found = dict(np.load(tmp_path / "out" / "samples.npz"))
    else:
        names = ("samples", "mean", "std")
        found = {name: np.load(tmp_path / "out" / f"{name}.npy") for name in names}
    assert found["samples"].shape == (N, S, *expected) and found["samples"].dtype == dtype
    wide = np.float32 if dtype in ("uint16", "float16") else np.float64
    assert found["mean"].dtype == found["std"].dtype == wide
    whole = x.round() if "int" in dtype else x
    np.testing.assert_array_equal(found["samples"].ravel(), whole.numpy().astype(dtype).ravel())
    np.testing.assert_allclose(found["mean"].ravel(), x.mean(dim=1).ravel(), rtol=1e-6)
    np.testing.assert_allclose(found["std"].ravel(), x.std(dim=1).ravel(), rtol=1e-6)


def test_one_sample_has_no_moments(tmp_path: Path) -> None:
    write(tmp_path / "out", Format(".npy", "float32", False), samples(GREY)[:, :1])
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["samples.npy"]


@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint64", "float16"])
def test_values_outside_the_dtype_are_clipped_with_a_warning(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = np.finfo(dtype) if dtype == "float16" else np.iinfo(dtype)
    x = samples(GREY, 0, 100)
    x[0, 0, 0, 0, 0], x[1, 1, 0, 0, 0] = -1e30, 1e30
    write(tmp_path / "out", Format(".npy", dtype, False), x)
    assert capsys.readouterr().err.count(f"outside the range of {dtype} and were clipped") == 1
    found = np.load(tmp_path / "out" / "samples.npy")
    assert found[0, 0, 0, 0] == limits.min and found[1, 1, 0, 0] == limits.max
    expected = x[2:, :, 0].numpy()
    expected = expected if dtype == "float16" else expected.round()
    np.testing.assert_array_equal(found[2:], expected.astype(dtype))


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    form, x = Format(".npy", "float32", False), samples(GREY)
    x[3, 0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="samples hold NaN or infinity"):
        write(tmp_path / "out", form, x)
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        write(tmp_path / "out", form, samples(GREY))
    assert [f.name for f in tmp_path.rglob("*")] == ["out", "mine.txt"]
    with pytest.raises(UserError, match="cannot be written \\(Not a directory\\)"):
        write(tmp_path / "out" / "mine.txt" / "out", form, samples(GREY))


def test_a_folder_behind_a_link_is_filled(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "nowhere"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(name)
        write(tmp_path / "link", Format(".npy", "float32", False), samples(GREY))
        assert (tmp_path / "link").is_symlink() and (tmp_path / name / "samples.npy").is_file()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif"])
def test_what_does_not_fit_is_refused_before_anything_is_drawn(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, never = Format(suffix, "uint16", False), iter([torch.empty(0)])
    with (
        pytest.raises(UserError, match=r"needs 1\.7e\+03 GB and .* GB are free"),
        SampleWriter(tmp_path / "out", form, GREY, count=10**5, n=360_000),
    ):
        raise AssertionError("it was opened")
    with pytest.raises(UserError, match="GB are free; free some, or choose another disk"):
        write_generated(tmp_path / "out", form, GREY, never, count=10**12)
    with pytest.raises(UserError, match="cannot be written \\(File name too long\\)"):
        write_generated(tmp_path / ("x" * 300), form, GREY, never, count=1)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(UserError, match="is a mount point; give a folder in it"):
        write_generated(tmp_path, form, GREY, never, count=1)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", Format(".npy", "float32", False), samples(GREY))
    assert (tmp_path / "out" / "samples.npy").is_file() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("form", "shape", "name"),
    [
        (Format(".tif", "uint16", False), GREY, "generated_00004.tif"),
        (Format(".npy", "uint16", False), GREY, "generated.npy"),
        (Format(".npz", "uint16", True), RGB, "generated.npz"),
    ],
)
def test_samples_of_the_prior(
    form: Format, shape: tuple[int, ...], name: str, tmp_path: Path
) -> None:
    x = samples(shape)[:, 0]
    write_generated(tmp_path / "out", form, shape, x.split(2), count=N)
    file = tmp_path / "out" / name
    if file.suffix == ".tif":
        with Image.open(file) as image:
            found, x = np.asarray(image), x[4, 0]
    else:
        held = np.load(file)
        found, x = (held if file.suffix == ".npy" else held["generated"]), x
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found.reshape(x.shape), x.round())


def test_a_format_is_plain() -> None:
    form = Format(".tif", "uint16", False)
    assert Format(**asdict(form)) == form


@pytest.mark.parametrize(
    "form", [Format(".tif", "uint16", False), Format(".npy", "float32", True)]
)
def test_one_sample_at_a_time_is_written_as_all_together(form: Format, tmp_path: Path) -> None:
    x = samples(GREY, 30_000, 40_000)
    names = [f"image {i}" for i in range(N)]
    write(tmp_path / "together", form, x, names)
    before = x.clone()
    with SampleWriter(tmp_path / "one", form, GREY, count=N, n=S, like=names) as writer:
        for row in x:
            writer.write_one(iter(row))
    assert torch.equal(x, before)
    files = sorted(f for f in (tmp_path / "together").rglob("*.*"))
    assert len(files) == (N * (S + 2) if form.suffix == ".tif" else 3)
    for file in files:
        other = tmp_path / "one" / file.relative_to(tmp_path / "together")
        if file.suffix == ".npy":
            expected, found = np.load(file), np.load(other)
        else:
            with Image.open(file) as a, Image.open(other) as b:
                expected, found = np.asarray(a), np.asarray(b)
        assert found.dtype == expected.dtype
        # Means and stds are summed in another order, and rounded to float32.
        np.testing.assert_allclose(found, expected, rtol=1e-6 if "std" in str(file) else 1e-7)


def test_images_of_several_sizes(tmp_path: Path) -> None:
    form, sizes = Format(".tif", "float32", False), [(3, 7), (5, 4)]
    with SampleWriter(tmp_path / "out", form, (1, 3, 7), count=2, n=2) as writer:
        for size in sizes:
            writer.write_one(torch.full((1, *size), float(s)) for s in range(2))
    for i, size in enumerate(sizes):
        with Image.open(tmp_path / "out" / "std" / f"{i:05d}.tif") as image:
            np.testing.assert_allclose(np.asarray(image), np.full(size, 0.5**0.5), rtol=1e-6)
