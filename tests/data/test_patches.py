"""Large measurements are cut into patches that keep what was measured, and are split by image."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_files import denoising, every, save

from diffem.corruption import (
    JPEG,
    Blur,
    Channel,
    Denoising,
    DistortedChannel,
    Distortion,
    Gamma,
    GaussianNoise,
    Impulse,
    LinearChannel,
    Mask,
    Measurement,
    Quantisation,
    Rician,
    Saturation,
    Weighting,
    make_channel,
)
from diffem.data.files import FileRows, MeasurementFiles
from diffem.data.held import open_measurements
from diffem.data.measurements import MeasurementSet
from diffem.data.patches import Patches
from diffem.data.stack import FileStack
from diffem.data.withdrawn import withdraw
from diffem.runtime.errors import UserError

RNG = np.random.default_rng(0)
SIZES = [(16, 24), (17, 23), (8, 8), (30, 9), (8, 31), (16, 16)]
SIDE = 8
STD = 100.0


@pytest.fixture
def images(tmp_path: Path) -> list[np.ndarray]:
    """16-bit images of several sizes, in the folder `images`."""
    folder = tmp_path / "images"
    folder.mkdir()
    made = [RNG.integers(0, 65536, size, dtype=np.uint16) for size in SIZES]
    for i, image in enumerate(made):
        Image.fromarray(image).save(folder / f"{i}.tif")
    return made


def corners(length: int) -> list[int]:
    """Returns where the patches of an axis begin: side by side, the last one shifted back."""
    return [*range(0, length - SIDE, SIDE), length - SIDE]


def test_patches_are_numbered_image_by_image_and_cover_them(
    images: list[np.ndarray], tmp_path: Path
) -> None:
    source = MeasurementFiles(str(tmp_path / "images"), patch=SIDE)
    assert source.shape == (1, SIDE, SIDE)
    expected = [
        image[r : r + SIDE, c : c + SIDE]
        for image in images
        for r in corners(image.shape[0])
        for c in corners(image.shape[1])
    ]
    assert source.count == len(expected)
    found = source.held.y[np.arange(source.count)]
    np.testing.assert_array_equal(found[:, 0], expected)
    np.testing.assert_array_equal(source.held.y[np.array([7, 2, 7, 20])], found[[7, 2, 7, 20]])
    # What comes later in the folder changes no number of what came before.
    fewer = MeasurementFiles(str(tmp_path / "images"), patch=SIDE, limit=4)
    np.testing.assert_array_equal(fewer.held.y[np.arange(fewer.count)], found[: fewer.count])


def origins(part: MeasurementSet) -> set[int]:
    """Returns the numbers of the images that the patches of a split are from."""
    assert isinstance(part.source, FileRows) and isinstance(part.source.held.y, Patches)
    return {part.source.held.y.origin(int(row))[0] for row in part.source.rows}


@pytest.mark.parametrize("heldout", [0.1, 0.34, 0.5])
def test_all_patches_of_an_image_are_on_one_side_of_the_split(
    heldout: float, images: list[np.ndarray], tmp_path: Path
) -> None:
    source = MeasurementFiles(str(tmp_path / "images"), patch=SIDE, heldout=heldout)
    train, held = source.measurement_sets(denoising(source.shape, STD))
    assert origins(train) | origins(held) == set(range(len(images)))
    assert not origins(train) & origins(held)
    assert len(train) + len(held) == source.count and min(len(train), len(held)) >= 2
    again = MeasurementFiles(str(tmp_path / "images"), patch=SIDE, heldout=heldout)
    other, _ = again.measurement_sets(denoising(source.shape, STD))
    assert torch.equal(every(train).y, every(other).y)


def test_masks_and_the_truth_are_cut_as_the_measurements_are(tmp_path: Path) -> None:
    n, shape = 5, (20, 13)
    truth = RNG.uniform(0, 1000, (n, *shape))
    mask = RNG.integers(0, 2, (n, *shape))
    y = np.where(RNG.random((n, *shape)) < 0.3, np.nan, truth)
    std = np.linspace(1, 9, n)
    path = save(tmp_path, y=y, operator=mask, std=std, truth=truth)
    source = MeasurementFiles(path, range=[0, 1000], patch=SIDE, heldout=0.4)
    channel = make_channel(Mask(source.shape, rho=0.5), GaussianNoise((1.0, 9.0)))
    for part in source.measurement_sets(channel):
        given = every(part)
        assert part.truth is not None
        # Where it was measured, y is the truth; elsewhere 0.
        torch.testing.assert_close(given.y, part.truth * given.operator)
        assert isinstance(part.source, FileRows)
        for k, row in enumerate(part.source.rows.tolist()):
            image, (r, c) = source.held.y.origin(row)  # type: ignore[attr-defined]
            place = (image, slice(r, r + SIDE), slice(c, c + SIDE))
            expected = mask[place] * ~np.isnan(y[place])
            np.testing.assert_array_equal(given.operator[k, 0].numpy(), expected)
            np.testing.assert_allclose(given.noise[k, 0], std[image] * 2 / 1000, rtol=1e-6)
        # The operators that training draws are those of the patches.
        assert isinstance(part.channel, LinearChannel)
        drawn = part.channel.forward_operator.draw(50, torch.Generator().manual_seed(0))
        held = {row.numpy().tobytes() for row in every_mask(source, channel)}
        assert {row.numpy().tobytes() for row in drawn} <= held


def every_mask(source: MeasurementFiles, channel: Channel) -> torch.Tensor:
    """Returns the mask of each patch."""
    return torch.cat([every(part).operator for part in source.measurement_sets(channel)])


def test_colour_signals_and_volumes(tmp_path: Path) -> None:
    for shape, patch, expected in (
        ((3, 12, 10), 4, (3, 4, 4)),
        ((2, 5, 12, 10), [3, 4, 5], (2, 3, 4, 5)),
        ((1, 5, 12, 10), 4, (1, 4, 4, 4)),
    ):
        np.save(tmp_path / "y.npy", RNG.normal(size=(6, *shape)))
        source = MeasurementFiles(str(tmp_path / "y.npy"), patch=patch)
        assert source.shape == expected
        train, _ = source.measurement_sets(denoising(expected, 0.1))
        assert train.select(slice(2)).y.shape == (2, *expected)
    np.save(tmp_path / "y.npy", RNG.normal(size=(6, 2, 50)))
    source = MeasurementFiles(str(tmp_path / "y.npy"), [2, 16], patch=16)
    assert source.held.y.shape == (6 * 4, 2, 16)


def test_an_image_is_read_once_to_cut_its_patches(
    images: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[int]()
    original = FileStack.__getitem__

    def count(stack: FileStack, rows: np.ndarray) -> np.ndarray:
        read.extend(rows.tolist())
        return original(stack, rows)

    monkeypatch.setattr(FileStack, "__getitem__", count)
    source = MeasurementFiles(str(tmp_path / "images"), patch=SIDE)
    for row in range(source.count):
        source.held.y[np.array([row])]
    assert read == list(range(len(images)))


class Clipped(Channel):
    """y = min(x, 1): not linear, of each pixel by itself."""

    pixelwise = True

    def draw(self, x: torch.Tensor, generator: torch.Generator) -> Measurement:
        return Measurement.of(x.clamp(max=1))

    def embed(self, measurement: Measurement) -> torch.Tensor:
        return measurement.y


def test_a_channel_of_ones_own_says_whether_it_can_be_cut(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", RNG.uniform(-1, 1, (6, 20, 20)))
    source = MeasurementFiles(str(tmp_path / "y.npy"), [1, SIDE, SIDE], range=[-1, 1], patch=SIDE)
    train, _ = source.measurement_sets(Clipped((1, SIDE, SIDE)))
    assert train.select(slice(3)).y.shape == (3, 1, SIDE, SIDE)


BLUR = make_channel(Blur((1, SIDE, SIDE), sigma=1.0, kernel_size=3), GaussianNoise(0.1))


@pytest.mark.parametrize(
    ("shape", "settings", "sentence"),
    [
        ((20, 20), {}, "dataset.patch=8 needs a corruption of each pixel by itself"),
        ((20, 7), {}, "row 0 of y has shape [20, 7], which is smaller than [8, 8]; lower"),
        ((20,), {}, "dataset.patch=8 cuts images and signals, and"),
        ((20, 20), {"patch": [8]}, "dataset.patch=[8] must be one number or 2"),
        ((20, 20), {"patch": []}, "dataset.patch=[] must be one number or 2"),
        ((20, 20), {"patch": 1}, "dataset.patch must be a whole number of at least 2, got 1"),
        ((20, 20), {"shape": [1, 4, 4]}, "dataset.shape=[1, 4, 4] must have the sides of"),
        ((20, 20), {"limit": 4, "heldout": 0.95}, "leaves 0 of 36 patches to train on"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    shape: tuple[int, ...], settings: dict, sentence: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "y.npy", RNG.normal(size=(6, *shape)))
    with pytest.raises(UserError) as error:
        source = MeasurementFiles(str(tmp_path / "y.npy"), **{"patch": SIDE, **settings})
        source.measurement_sets(BLUR if not settings else denoising(source.shape))
    assert sentence in str(error.value)


def test_a_folder_of_several_sizes_is_for_patches_alone(
    images: list[np.ndarray], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    with pytest.raises(UserError, match="all measurements must be alike, or be cut by dataset"):
        MeasurementFiles(str(folder))
    with pytest.raises(UserError, match=r"2\.tif has shape \[1, 8, 8\], which is smaller than"):
        MeasurementFiles(str(folder), patch=9)
    Image.fromarray(images[0].astype(np.uint8)).save(folder / "zz.tif")
    with pytest.raises(UserError, match=r"zz\.tif is uint8 .* must have the same channels and"):
        MeasurementFiles(str(folder), patch=SIDE)
    assert open_measurements(folder, limit=6, alike=False).shapes == {(1, *s) for s in SIZES}


def test_what_a_patch_is_called(images: list[np.ndarray], tmp_path: Path) -> None:
    y = RNG.normal(size=(6, 20, 20))
    y[3, 13, 2] = np.inf
    np.save(tmp_path / "y.npy", y)
    with pytest.raises(UserError, match=r"row 3 of y, patch at \[8, 0\] holds infinity"):
        MeasurementFiles(str(tmp_path / "y.npy"), patch=SIDE)


def test_the_first_patches_of_a_set_are_of_all_its_images(
    images: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The init and the scores look at the first; the others stay in the images' order."""
    monkeypatch.setattr("diffem.data.files.MIXED", 12)
    source = MeasurementFiles(str(tmp_path / "images"), patch=SIDE, heldout=0.2)
    train, _ = source.measurement_sets(denoising(source.shape, STD))
    assert isinstance(train.source, FileRows)
    rows = train.source.rows
    assert len(rows) > 20 and len(rows.unique()) == len(rows)
    assert (rows[12:].diff() > 0).all() and not (rows[:12].diff() > 0).all()
    first = MeasurementSet(
        FileRows(source.held, rows[:12], train.channel, source.scale), train.channel
    )
    assert len(origins(first)) >= 3


def test_noise_of_every_pixel_s_own_is_cut(tmp_path: Path) -> None:
    y, std = RNG.normal(size=(6, 20, 13)), RNG.uniform(0.5, 2, (6, 20, 13))
    source = MeasurementFiles(save(tmp_path, y=y, std=std), range=[-1, 1], patch=SIDE)
    channel = make_channel(Weighting(source.shape, ratio=(0.5, 2.0)), GaussianNoise(1.0))
    train, _ = source.measurement_sets(channel)
    given = every(train)
    assert isinstance(train.source, FileRows)
    for k, row in enumerate(train.source.rows.tolist()):
        image, (r, c) = source.held.y.origin(row)  # type: ignore[attr-defined]
        place = (image, slice(r, r + SIDE), slice(c, c + SIDE))
        np.testing.assert_allclose(given.operator[k, 0], 1 / std[place], rtol=1e-5)
        np.testing.assert_allclose(given.y[k, 0], (y / std)[place], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("distortions", "cut"),
    [
        ([Saturation(low=-1, high=0.5)], True),
        ([Gamma(gamma=2.0), Quantisation(levels=9), Impulse(fraction=0.1)], True),
        ([Rician()], True),
        ([JPEG(quality=50)], False),
        ([Saturation(low=-1, high=0.5), JPEG(quality=50)], False),
    ],
)
def test_distortions_of_each_pixel_by_itself_are_cut(
    distortions: list[Distortion], cut: bool, tmp_path: Path
) -> None:
    np.save(tmp_path / "y.npy", RNG.uniform(-1, 1, (6, 20, 20)))
    shape = (1, SIDE, SIDE)
    source = MeasurementFiles(str(tmp_path / "y.npy"), shape, range=[-1, 1], patch=SIDE)
    noisy = make_channel(Denoising(shape), GaussianNoise(0.1))
    assert isinstance(noisy, LinearChannel)
    channel = DistortedChannel(noisy, distortions)
    if cut:
        train, _ = source.measurement_sets(channel)
        assert train.select(slice(3)).y.shape == (3, *shape)
    else:
        with pytest.raises(UserError, match="needs a corruption of each pixel by itself"):
            source.measurement_sets(channel)


def test_all_pages_of_a_file_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    folder = tmp_path / "stacks"
    folder.mkdir()
    pages = [3, 2, 4, 1]
    for i, count in enumerate(pages):
        stack = RNG.integers(0, 65536, (count, *SIZES[i]), dtype=np.uint16)
        tifffile.imwrite(folder / f"{i}.tif", stack, photometric="minisblack")
    source = MeasurementFiles(str(folder), patch=SIDE, heldout=0.4)
    file_of = np.repeat(np.arange(len(pages)), pages)
    train, held = source.measurement_sets(denoising(source.shape, STD))
    sides = [{int(file_of[image]) for image in origins(part)} for part in (train, held)]
    assert sides[0] | sides[1] == set(range(len(pages))) and not sides[0] & sides[1]
    assert len(origins(train) | origins(held)) == sum(pages)


def test_the_patches_of_an_image_are_withdrawn_by_the_name_of_its_file(
    images: list[np.ndarray], tmp_path: Path
) -> None:
    del images
    folder = tmp_path / "images"
    for file in folder.glob("*.tif"):
        file.rename(file.with_stem(f"scan{file.stem}"))
    source = MeasurementFiles(str(folder), heldout=0.3, patch=SIDE)
    sets = source.measurement_sets(denoising(source.shape, STD))
    left = withdraw(*sets, ["scan1"], key="--rows")
    sizes = SIZES[1]
    assert sum(map(len, sets)) - sum(map(len, left)) == math.prod(len(corners(n)) for n in sizes)
    for part in left:
        assert isinstance(part.source, FileRows)
        patches = part.source.held.y
        assert isinstance(patches, Patches)
        assert 1 not in {patches.origin(row)[0] for row in part.source.rows.tolist()}
