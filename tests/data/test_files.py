"""Measurements of one's own come back as they were; what would lose values is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffem.corruption import (
    Blur,
    Channel,
    Denoising,
    GaussianNoise,
    LinearChannel,
    Mask,
    Measurement,
    PoissonNoise,
    Projection,
    make_channel,
)
from diffem.data.files import MeasurementFiles
from diffem.data.held import open_measurements
from diffem.data.images import ImageReader
from diffem.data.measurements import MeasurementSet
from diffem.data.scale import Scale
from diffem.runtime.errors import UserError

N = 20
RNG = np.random.default_rng(0)
IMAGES = {  # (H, W) or (H, W, 3)
    "8-bit": RNG.integers(0, 256, (N, 6, 5), dtype=np.uint8),
    "16-bit": RNG.integers(0, 65536, (N, 6, 5), dtype=np.uint16),
    "float": RNG.normal(1000, 200, (N, 6, 5)).astype(np.float32),
    "RGB": RNG.integers(0, 256, (N, 6, 5, 3), dtype=np.uint8),
}


def folder(path: Path, images: np.ndarray, suffix: str) -> Path:
    path.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(path / f"{i:03d}{suffix}")
    return path


def every(measurements: MeasurementSet) -> Measurement:
    return measurements.select(slice(None))


def denoising(shape: tuple[int, ...], std: float = 10.0) -> Channel:
    return make_channel(Denoising(shape), GaussianNoise(std))


@pytest.mark.parametrize(
    ("name", "suffix"),
    [(n, s) for n in IMAGES for s in (".png", ".tif", ".TIFF") if (n, s) != ("float", ".png")],
)
def test_images_come_back_as_they_were(name: str, suffix: str, tmp_path: Path) -> None:
    images = IMAGES[name]
    source = MeasurementFiles(str(folder(tmp_path / "é = (1)", images, suffix)))
    expected = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)
    np.testing.assert_array_equal(source.held.y[np.arange(N)], expected)
    train, heldout = source.measurement_sets(denoising(source.shape))
    assert (len(train), len(heldout)) == (18, 2) and train.truth is None
    # Back in the data's units, to float32's precision.
    y = source.scale.denormalise(torch.cat([every(train).y, every(heldout).y]))
    size = float(np.abs(expected.astype(np.float64)).max())
    torch.testing.assert_close(
        y.flatten(1).sum(dim=1).sort().values,
        torch.from_numpy(expected.astype(np.float32)).flatten(1).sum(dim=1).sort().values,
        rtol=0,
        atol=y[0].numel() * size * 1e-6,
    )


def test_the_noise_is_in_the_data_s_units(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", IMAGES["float"])
    source = MeasurementFiles(str(tmp_path / "y.npy"), range=[0, 2000])
    train, _ = source.measurement_sets(denoising(source.shape, 50.0))
    assert train.scale == Scale(0, 2000)
    assert (every(train).noise == 50.0 * 2 / 2000).all()
    drawn = train.channel.draw(torch.zeros(500, 1, 6, 5), torch.Generator().manual_seed(0)).y
    # Monte Carlo: 15,000 normal values.
    assert abs(float(drawn.std()) / 0.05 - 1) < 4.5 / (2 * 15000) ** 0.5


def test_nan_is_not_measured_and_masks_are_drawn_from_the_data(tmp_path: Path) -> None:
    y = IMAGES["float"].copy()
    y[:, :, 1::2] = np.nan  # every other column, in all
    y[::2, 0] = np.nan
    np.savez(tmp_path / "y.npz", y=y)
    source = MeasurementFiles(str(tmp_path / "y.npz"))
    channel = make_channel(Mask(source.shape, rho=0.5), GaussianNoise(10.0))
    train, _ = source.measurement_sets(channel)
    mask = every(train).operator
    assert (every(train).y[mask == 0] == 0).all() and every(train).y.isfinite().all()
    drawn = train.channel.draw(torch.zeros(200, 1, 6, 5), torch.Generator().manual_seed(0))
    assert (drawn.operator[..., 1::2] == 0).all()
    assert set(drawn.operator.flatten(1).sum(dim=1).tolist()) == {15.0, 18.0}


def test_a_missing_entry_of_a_vector_leaves_the_others(tmp_path: Path) -> None:
    y = RNG.normal(0, 1, (N, 6)).astype(np.float32)
    y[:, 2] = np.nan
    source = MeasurementFiles(save(tmp_path, y=y))
    train, _ = source.measurement_sets(make_channel(Mask((6,), rho=0.5), GaussianNoise(0.1)))
    assert every(train).operator.mean(dim=0).tolist() == [1, 1, 0, 1, 1, 1]


def test_a_mask_a_noise_of_each_and_the_truth_from_one_file(tmp_path: Path) -> None:
    mask = RNG.integers(0, 2, (N, 6, 5))
    std = np.linspace(5, 50, N)
    truth = IMAGES["float"]
    np.savez(tmp_path / "y.npz", y=truth * mask, operator=mask, std=std, truth=truth)
    source = MeasurementFiles(str(tmp_path / "y.npz"), range=[0, 2000], heldout=0.25)
    channel = make_channel(Mask(source.shape, rho=0.5), GaussianNoise((5.0, 50.0)))
    train, heldout = source.measurement_sets(channel)
    assert len(heldout) == 5 and train.truth is not None
    rows = [int((std * 1e-3 - float(s)).__abs__().argmin()) for s in every(train).noise[:, 0]]
    np.testing.assert_array_equal(every(train).operator[:, 0].numpy(), mask[rows])
    np.testing.assert_allclose(train.truth[:, 0], truth[rows] / 1000 - 1, atol=1e-5)


def test_a_blur_of_known_width_needs_no_operator(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", IMAGES["float"])
    source = MeasurementFiles(str(tmp_path / "y.npy"))
    blur = make_channel(Blur(source.shape, sigma=1.0, kernel_size=3), GaussianNoise(10.0))
    train, _ = source.measurement_sets(blur)
    assert (every(train).operator == 1.0).all()


def test_photons_have_the_assumed_noise_in_the_units_of_a_camera(tmp_path: Path) -> None:
    photons, background, gain, offset = 400.0, 4.0, 2.5, 100.0
    x = RNG.random((200, 6, 5))
    y = offset + gain * RNG.poisson(photons * x + background)
    np.save(tmp_path / "y.npy", y)
    bounds = [offset + gain * background, offset + gain * (background + photons)]
    channel = make_channel(Denoising((1, 6, 5)), PoissonNoise(photons, background))
    source = MeasurementFiles(str(tmp_path / "y.npy"), range=bounds)
    train, heldout = source.measurement_sets(channel)
    for measurements in (train, heldout):
        assert (every(measurements).noise == photons).all()
    assert isinstance(train.channel, LinearChannel)
    held, rows = every(train), train.source.rows  # type: ignore[union-attr]
    clean = torch.from_numpy(2 * x[rows] - 1).float()[:, None]
    error = held.y - clean
    chi2 = error**2 / train.channel.noise.variance(clean, held.noise)
    # The variance of ((n - m) / √m)² of a Poisson number n of mean m >= 4 is 2 + 1 / m.
    assert abs(chi2.mean() - 1) < 4 * (2.25 / chi2.numel()) ** 0.5
    with pytest.raises(UserError, match=r"dataset\.range must be given with Denoising"):
        MeasurementFiles(str(tmp_path / "y.npy")).measurement_sets(channel)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_what_is_no_image_of_the_folder(suffix: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "images", IMAGES["8-bit"], suffix)
    (path / f"._000{suffix}").write_bytes(b"macOS writes such files")
    (path / "notes.txt").write_text("mine")
    (path / "folder").mkdir()
    assert len(open_measurements(path).y) == N
    os.mkfifo(path / f"pipe{suffix}")
    with pytest.raises(UserError, match=f"--input: .*pipe{suffix} is no file"):
        open_measurements(path, key="--input")
    (path / f"pipe{suffix}").unlink()
    (path / f"link{suffix}").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"--input: .*link{suffix} leads out"):
        open_measurements(path, key="--input")


def save(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path / "y.npz", **arrays)  # type: ignore[arg-type]
    return str(path / "y.npz")


Y = IMAGES["float"]
RANGED = make_channel(Blur((1, 6, 5), sigma=(0.5, 2.0), kernel_size=3), GaussianNoise(1.0))


@pytest.mark.parametrize(
    ("arrays", "channel", "sentence"),
    [
        ({"x": Y}, None, "must hold y, and may hold operator, std and truth; it holds x"),
        ({"y": Y, "labels": Y}, None, "it holds labels, y"),
        ({"y": Y.astype(str)}, None, "y must be real numbers, (N, …), got <U32"),
        ({"y": np.where(Y > 900, np.inf, Y)}, None,
         "of y holds infinity, or a number that is too large; mark it by NaN"),
        ({"y": Y[:3]}, None, "holds 3 measurements; at least 4 are needed"),
        ({"y": Y, "std": np.ones(3)}, None, "std must have a row for each of the 20"),
        ({"y": Y, "std": -np.ones(N)}, None, "std must be positive numbers"),
        ({"y": np.where(Y > 900, np.nan, Y)}, denoising((1, 6, 5)), "train with corruption=mask"),
        ({"y": Y}, RANGED, "has no `operator`, and Blur with GaussianNoise draws its own"),
        ({"y": Y}, denoising((1, 5, 6)), "train with another dataset.shape or corruption"),
        ({"y": Y.reshape(N, 30)}, make_channel(Projection((30,), rows=30), GaussianNoise(1.0)),
         "has another one for each measurement"),
        ({"y": Y}, make_channel(Denoising((1, 6, 5)), GaussianNoise((1.0, 2.0))),
         "corruption.noise.std is a range"),
        ({"y": Y, "operator": np.ones((N, 2, 2))},
         make_channel(Mask((1, 6, 5), rho=0.5), GaussianNoise(1.0)),
         "has shape [2, 2], and [1, 6, 5]"),
    ],
)  # fmt: skip
def test_what_is_refused(
    arrays: dict[str, np.ndarray], channel: Channel | None, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        shape = None if channel is None else channel.shape
        source = MeasurementFiles(save(tmp_path, **arrays), shape)
        assert channel is not None
        source.measurement_sets(channel)
    assert sentence in str(error.value)


def test_a_truth_of_another_shape_and_a_split_without_training_data(tmp_path: Path) -> None:
    for truth in (Y[:, :4], np.where(Y > 900, np.nan, Y)):
        source = MeasurementFiles(save(tmp_path, y=Y, truth=truth))
        with pytest.raises(
            UserError, match=r"y\.npz: truth must be finite images of shape \[1, 6, 5\]"
        ):
            source.measurement_sets(denoising(source.shape))
    source = MeasurementFiles(save(tmp_path, y=Y), heldout=0.95)
    with pytest.raises(UserError, match=r"dataset\.heldout=0\.95 leaves 1 of 20 measurements"):
        source.measurement_sets(denoising(source.shape))


def open_image(file: Path) -> None:
    with ImageReader().open(file, f"dataset.path: {file}"):
        raise AssertionError("it was opened")


def test_files_that_would_lose_values_are_refused(tmp_path: Path) -> None:
    alpha, pages, palette = (tmp_path / n for n in ("alpha.png", "pages.tif", "palette.png"))
    Image.new("RGBA", (4, 4)).save(alpha)
    grey = Image.fromarray(IMAGES["8-bit"][0])
    grey.save(pages, save_all=True, append_images=[grey])
    grey.convert("P").save(palette)
    for file in (alpha, pages, palette):
        with pytest.raises(UserError, match="would lose values"):
            open_image(file)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="cannot be read"):
        open_image(tmp_path / "text.png")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"II*\0garbage", "it seems damaged: "),  # it was "(0)"
        (b"", "not a TIFF file"),
    ],
)
def test_a_damaged_image_is_named_with_its_fault(
    content: bytes, said: str, tmp_path: Path
) -> None:
    pytest.importorskip("tifffile")
    images = folder(tmp_path / "images", IMAGES["8-bit"], ".tif")
    (images / "000.tif").write_bytes(content)
    with pytest.raises(UserError, match=rf"000\.tif cannot be read \({said}"):
        MeasurementFiles(str(images))


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"has no \.png, \.tif, \.tiff, .* files; put the images there"
    ):
        MeasurementFiles(str(tmp_path / "empty"))
    mixed = folder(tmp_path / "mixed", IMAGES["8-bit"], ".png")
    Image.fromarray(IMAGES["8-bit"][0][:4]).save(mixed / "zz.png")
    with pytest.raises(UserError, match=r"zz.png is uint8 of shape \[1, 4, 5\], but 000.png"):
        MeasurementFiles(str(mixed))
    with pytest.raises(UserError, match="nowhere does not exist; give a folder of images"):
        MeasurementFiles(str(tmp_path / "nowhere"))


def test_values_outside_a_given_range_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "y.npy", IMAGES["float"])
    source = MeasurementFiles(str(tmp_path / "y.npy"), range=[900, 1100])
    train, _ = source.measurement_sets(denoising(source.shape))
    assert "of the measured values are outside dataset.range=[900,1100]" in capsys.readouterr().err
    assert float(every(train).y.abs().max()) > 2


@pytest.mark.parametrize(("std", "warned"), [(10.0, True), (50.0, False)])
def test_values_that_noise_takes_out_of_the_range_are_not_warned_of(
    std: float, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of all values are below 0, by noise with the deviation 50."""
    y = 50 * np.random.default_rng(0).standard_normal((20, 8, 8))
    y[0, 0, 0] = 1000
    np.save(tmp_path / "y.npy", y)
    source = MeasurementFiles(str(tmp_path / "y.npy"), range=[0, 1000])
    source.measurement_sets(denoising(source.shape, std))
    assert ("some by more than noise" in capsys.readouterr().err) == warned
