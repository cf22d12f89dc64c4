"""Measurements need not fit in memory: rows are read when they are asked for, and no others."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import format as npy
from PIL import Image
from test_arrays import Gain, Saturated
from test_files import IMAGES, N, denoising, every, folder, save

from diffem.corruption import Blur, Channel, GaussianNoise, Mask, Radon, make_channel
from diffem.data import MeasurementFiles
from diffem.data.npy import ArrayFile, open_npz
from diffem.runtime.errors import UserError

Y = IMAGES["float"]
ROWS = np.array([3, 4, 5, 0, 19, 19, 7])
MEGABYTES = 100


def sparse(path: Path, shape: tuple[int, ...]) -> Path:
    """Writes a .npy file of zeros that takes no room on the disk."""
    with path.open("wb") as file:
        npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        try:
            file.truncate(file.tell() + 4 * int(np.prod(shape)))
        except OSError as error:  # of the file system
            pytest.skip(f"no file of this size here: {error}")
    return path


def test_a_part_of_200_gigabytes_is_used(tmp_path: Path) -> None:
    path = sparse(tmp_path / "y.npy", (12_500_000, 64, 64))
    assert path.stat().st_size > 200e9
    start = time.perf_counter()
    source = MeasurementFiles(str(path), range=[-1, 1], limit=64)
    train, heldout = source.measurement_sets(denoising(source.shape, 0.1))
    assert every(train).y.shape == (58, 1, 64, 64) and len(heldout) == 6
    assert time.perf_counter() - start < 1


SCRIPT = """
import re, sys, torch
from pathlib import Path
from diffem.corruption import Denoising, GaussianNoise, Mask, make_channel
from diffem.data import MeasurementFiles
from diffem.runtime.rng import generator

def peak():
    # Not of getrusage, which begins with what the parent had when it started this process.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1)) / 1024

corruption = Mask if sys.argv[2] == "mask" else Denoising
settings = {"rho": 0.5} if corruption is Mask else {}
operator = corruption((1, 64, 64), **settings)
channel = make_channel(operator, GaussianNoise(0.1))
channel.embed(channel.draw(torch.zeros(128, 1, 64, 64), generator("warm up")))
before = peak()
train, heldout = MeasurementFiles(sys.argv[1]).measurement_sets(channel)
for start in range(0, len(train), 128):
    measurement = train.select(slice(start, start + 128))
    train.select(torch.randint(len(train), (128,)))
    train.channel.draw(torch.zeros(128, 1, 64, 64), generator("draw", start))
print(len(train), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux's own count is used")
@pytest.mark.parametrize(("suffix", "corruption"), [(".npy", "mask"), (".npz", "denoising")])
def test_memory_stays_flat(suffix: str, corruption: str, tmp_path: Path) -> None:
    """20,000 measurements of 64 × 64, 328 MB as float32, are read, drawn at random and masked."""
    path = tmp_path / "y.npy"
    y = npy.open_memmap(path, "w+", "<f4", (20_000, 64, 64))
    rng = np.random.default_rng(0)
    for rows in np.split(np.arange(len(y)), 20):
        y[rows] = rng.standard_normal((len(rows), 64, 64), np.float32)
        y[rows, 3] = np.nan if corruption == "mask" else 0
    y.flush()
    if suffix == ".npz":
        np.savez(tmp_path / "y.npz", y=y)
        path = tmp_path / "y.npz"
    del y
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), corruption],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    count, grown = done.stdout.split()
    assert int(count) == 18_000
    assert float(grown) < MEGABYTES


@pytest.mark.parametrize("dtype", [">f4", "<u2", "float64", "float16", "int64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_those_of_the_array(dtype: str, order: str, tmp_path: Path) -> None:
    array = np.asarray(Y.astype(dtype), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "y.npy", array)
    np.savez(tmp_path / "stored.npz", y=array, std=np.arange(N))
    np.savez_compressed(tmp_path / "packed.npz", y=array, std=np.arange(N))
    stored = open_npz(tmp_path / "stored.npz", "stored", ("y", "std"))
    packed = open_npz(tmp_path / "packed.npz", "packed", ("y", "std"))
    assert isinstance(stored["y"], ArrayFile) and isinstance(packed["y"], np.ndarray)
    for held in (ArrayFile(tmp_path / "y.npy", "y"), stored["y"], packed["y"]):
        assert held.dtype == array.dtype and held.shape == array.shape
        np.testing.assert_array_equal(held[ROWS], array[ROWS])
        assert held[ROWS[:0]].shape == (0, 6, 5)
    np.testing.assert_array_equal(stored["std"][ROWS], ROWS)


def test_a_split_reads_the_rows_of_its_own(tmp_path: Path) -> None:
    """Whatever is selected, in any order, is what all rows hold there."""
    y, mask = Y.copy(), np.random.default_rng(1).integers(0, 2, (N, 6, 5))
    y[::3, 2] = np.nan
    source = MeasurementFiles(save(tmp_path, y=y, operator=mask, truth=Y), heldout=0.3)
    train, heldout = source.measurement_sets(
        make_channel(Mask(source.shape, rho=0.5), GaussianNoise(10.0))
    )
    for part in (train, heldout):
        complete = every(part)
        assert part.truth is not None
        clean = part.truth * complete.operator
        torch.testing.assert_close(complete.y, clean)  # y and the truth are of the same row
        for index in (slice(1, 4), torch.tensor([3, 0, 3])):
            for found, expected in zip(part.select(index), complete, strict=True):
                assert torch.equal(found, expected[index])
    # Masks are drawn from all measurements: those with a missing row, too.
    drawn = train.channel.draw(torch.zeros(100, 1, 6, 5), torch.Generator().manual_seed(0))
    known = {tuple(m.flatten().tolist()) for p in (train, heldout) for m in every(p).operator}
    assert {tuple(m.flatten().tolist()) for m in drawn.operator} <= known


def test_the_first_measurements_alone_are_used(tmp_path: Path) -> None:
    images = folder(tmp_path / "crops", IMAGES["16-bit"], ".tif")
    (images / "010.tif").write_text("no image")  # behind the limit
    bad = np.where(np.arange(N)[:, None, None] > 9, np.inf, Y)
    np.save(tmp_path / "y.npy", bad)
    for path in (images, tmp_path / "y.npy", save(tmp_path, y=bad)):
        source = MeasurementFiles(str(path), limit=10)
        train, heldout = source.measurement_sets(denoising(source.shape))
        assert (len(train), len(heldout)) == (8, 2)
        low, high = np.quantile(source.held.y[np.arange(10)], (5e-4, 1 - 5e-4))
        assert (source.scale.low, source.scale.high) == (low, high)
    assert len(MeasurementFiles(save(tmp_path, y=Y), limit=99).held.y) == N
    with pytest.raises(UserError, match=r"dataset\.limit must be a whole number of at least 4"):
        MeasurementFiles(str(images), limit=3)


def test_the_range_of_many_values_is_estimated_from_some(tmp_path: Path) -> None:
    """The quantile at 0.05 % of 2²¹ values is off by less than the noise of its rank."""
    y = np.random.default_rng(0).uniform(0, 1, (700, 64, 64))
    np.save(tmp_path / "y.npy", y)
    scale = MeasurementFiles(str(tmp_path / "y.npy")).scale
    # Of n uniform values the quantile at q has the standard deviation sqrt(q (1 - q) / n).
    bound = 4.5 * (5e-4 / 2**21) ** 0.5 + 4.5 * (5e-4 / y.size) ** 0.5
    assert abs(scale.low - 5e-4) < bound and abs(scale.high - (1 - 5e-4)) < bound
    assert MeasurementFiles(str(tmp_path / "y.npy")).scale == scale


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "sentence"),
    [
        ("y.npy", cut, "it ends before its 20 rows do"),
        ("y.npz", cut, "cannot be read"),
        ("y.npz", flip, "Bad CRC-32"),
        ("packed.npz", flip, "cannot be read"),
        ("007.tif", cut, "007.tif cannot be read"),
        ("007.png", cut, "007.png cannot be read"),
        ("007.png", lambda path: path.write_bytes(b""), "007.png cannot be read"),
        ("y.npy", lambda path: path.write_bytes(b""), "y.npy cannot be read"),
        ("y.npz", lambda path: path.write_bytes(b"PK"), "y.npz cannot be read"),
        ("007.tif", lambda path: (path.unlink(), path.symlink_to("nowhere")), "007.tif"),
    ],
)
def test_damage_is_found_at_the_start(
    name: str, damage: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    path = file = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, Y)
    elif path.suffix == ".npz":
        (np.savez if name == "y.npz" else np.savez_compressed)(path, y=Y)
    else:
        path = folder(tmp_path / "crops", IMAGES["16-bit"], path.suffix)
        file = path / name
    damage(file)
    with pytest.raises(UserError) as error:
        MeasurementFiles(str(path))
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("change", ["gone", "cut", "another size"])
@pytest.mark.parametrize("name", ["y.npy", "y.npz", "columns first.npy", "002.tif"])
def test_files_that_change_during_a_run(name: str, change: str, tmp_path: Path) -> None:
    path = file = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, Y if name == "y.npy" else np.asfortranarray(Y))
    elif path.suffix == ".npz":
        np.savez(path, y=Y)
    else:
        path = folder(tmp_path / "crops", IMAGES["16-bit"], path.suffix)
        file = path / name
    source = MeasurementFiles(str(path))
    train, _ = source.measurement_sets(denoising(source.shape))
    if change == "gone":
        file.unlink()
    elif change == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 4])
    elif file.suffix == ".tif":
        Image.fromarray(IMAGES["8-bit"][0]).save(file)
    else:
        file.write_bytes(b"0")
    with pytest.raises(UserError) as error:
        every(train)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert ("put it back" in str(error.value)) == (change == "gone")


@pytest.mark.parametrize("name", ["y.npy", "y.npz", "crops"])
def test_what_may_not_be_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not hold root back: the system's refusal is simulated."""
    np.save(tmp_path / "y.npy", Y)
    np.savez(tmp_path / "y.npz", y=Y)
    folder(tmp_path / "crops", IMAGES["8-bit"], ".png")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", name)

    for opener in ("pathlib.Path.open", "zipfile.ZipFile.__init__", "PIL.Image.open"):
        monkeypatch.setattr(opener, refuse)
    with pytest.raises(UserError, match=r"\(Permission denied\); allow this user to read it"):
        MeasurementFiles(str(tmp_path / name))


@pytest.mark.parametrize("channel", [Saturated((1, 6, 5)), Gain((1, 6, 5))])
def test_a_channel_that_only_draws_and_embeds(channel: Channel, tmp_path: Path) -> None:
    """y stays in its units; the range is that of the clean images."""
    gain = np.linspace(0.1, 1, N)
    given = {"operator": gain} if isinstance(channel, Gain) else {"std": gain}
    path = save(tmp_path, y=Y, truth=Y, **given)
    train, heldout = MeasurementFiles(path, [1, 6, 5], range=[0, 4000]).measurement_sets(channel)
    y, phi, noise = every(train)
    assert train.truth is not None and train.scale.high == 4000
    torch.testing.assert_close(y, train.scale.denormalise(train.truth), rtol=1e-5, atol=0)
    kept = phi if isinstance(channel, Gain) else noise
    assert kept.shape == (len(train), 1)
    found = torch.cat([kept, every(heldout)[1 if isinstance(channel, Gain) else 2]])
    assert sorted(found[:, 0].tolist()) == [float(np.float32(g)) for g in gain]
    with pytest.raises(UserError, match=r"dataset\.range must be given with"):
        MeasurementFiles(path, [1, 6, 5]).measurement_sets(channel)
    with pytest.raises(UserError, match=r"dataset\.shape must be given with"):
        MeasurementFiles(path, range=[0, 4000]).measurement_sets(channel)
    holes = save(tmp_path, y=np.where(Y > 1200, np.nan, Y), **given)
    with pytest.raises(UserError, match="does not say what was not measured"):
        MeasurementFiles(holes, [1, 6, 5], range=[0, 1]).measurement_sets(channel)


def test_nan_is_looked_for_in_all_measurements(tmp_path: Path) -> None:
    """The first that holds NaN may be one whose operator says so."""
    angles = np.tile([10.0, 40.0], (N, 1))
    y = np.zeros((N, 1, 2, 9))
    y[1, :, 1], angles[1, 1], y[5, :, 1] = np.nan, np.nan, np.nan
    channel = make_channel(Radon((1, 6, 5), angles=2), GaussianNoise(1.0))
    for wrong in (True, False):
        angles[5, 1] = 40 if wrong else np.nan
        source = MeasurementFiles(save(tmp_path, y=y, operator=angles), [1, 6, 5], range=[0, 1])
        if wrong:
            with pytest.raises(UserError, match="takes it for measured; give NaN in `operator`"):
                source.measurement_sets(channel)
        else:
            y_read, phi, _ = every(source.measurement_sets(channel)[0])
            assert y_read.isfinite().all() and phi.isnan().any()


def test_masks_without_numbers_are_refused_before_a_run(tmp_path: Path) -> None:
    masks = np.ones((N, 6, 5))
    masks[3, 1, 1] = np.nan
    source = MeasurementFiles(save(tmp_path, y=Y, operator=masks))
    with pytest.raises(UserError, match="operator holds NaN; correct it"):
        source.measurement_sets(make_channel(Mask(source.shape, rho=0.5), GaussianNoise(10.0)))


def test_a_mask_without_anything_missing_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = MeasurementFiles(save(tmp_path, y=Y))
    source.measurement_sets(make_channel(Mask(source.shape, rho=0.5), GaussianNoise(10.0)))
    assert "says nowhere that a pixel was not measured" in capsys.readouterr().err


def test_an_operator_beside_a_known_one_is_refused(tmp_path: Path) -> None:
    source = MeasurementFiles(save(tmp_path, y=Y, operator=np.ones(N)))
    blur = make_channel(Blur(source.shape, sigma=1.0, kernel_size=3), GaussianNoise(10.0))
    with pytest.raises(UserError, match=r"corruption\.sigma is one number for all"):
        source.measurement_sets(blur)


def test_formats_and_names(tmp_path: Path) -> None:
    source = MeasurementFiles(str(folder(tmp_path / "crops", IMAGES["16-bit"], ".TIFF")))
    assert (source.format.suffix, source.format.dtype) == (".tif", "uint16")
    assert source.names == tuple(f"{i:03d}" for i in range(N)) and not source.format.channel_axis
    source = MeasurementFiles(save(tmp_path, y=np.moveaxis(IMAGES["RGB"], -1, 1).astype(">i2")))
    assert (source.format.suffix, source.format.dtype) == (".npz", "int16")
    assert source.names is None and source.format.channel_axis
    Image.fromarray(IMAGES["16-bit"][0]).save(tmp_path / "crops" / "003.png")
    with pytest.raises(UserError, match=r"003\.png and 003\.TIFF differ in nothing but"):
        MeasurementFiles(str(tmp_path / "crops"))
