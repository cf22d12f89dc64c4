"""From a folder of large images of several sizes to reconstructions of their own sizes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import ROOT
from in_process import run_here
from PIL import Image
from test_sample import Done, read, run

import diffem
from diffem import UserError
from diffem.cli import sample

STD = 3000.0
SIZES = [(24, 40), (33, 20)]
SIDE = 16


def scene(size: tuple[int, int], seed: int) -> np.ndarray:
    """Returns a clean image: a ramp in some direction, at 10,000 to 50,000 counts."""
    rng = np.random.default_rng(seed)
    row, column = np.indices(size)
    angle = rng.uniform(0, 2 * np.pi)
    wave = np.sin((row * np.sin(angle) + column * np.cos(angle)) / 8 + rng.uniform(0, 6))
    return 30000 + 20000 * wave


def noisy(size: tuple[int, int], seed: int) -> np.ndarray:
    noise = STD * np.random.default_rng([seed, 1]).standard_normal(size)
    return (scene(size, seed) + noise).clip(0, 65535).round().astype(np.uint16)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "images"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(noisy(SIZES[i % 2], i)).save(folder / f"image_{i:02d}.tif")
    return folder


@pytest.fixture(scope="module")
def trained(images: Path) -> Path:
    """A run on 16 × 16 patches of the folder."""
    return run_here(
        images.parent / "run",
        *("dataset=measurements", f"dataset.path={images}", f"dataset.patch={SIDE}"),
        *("corruption=denoising", f"corruption.noise.std={STD}", "em.steps_per_round=60"),
        *("sampler=sde", "sampler.steps=6"),
    )


def test_images_come_back_in_their_own_sizes(trained: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(sample.main, trained, "--input", images, "--n", 3, "--out", out)
    assert done.code == 0 and f"wrote {out}: 3 samples of each of 12" in done.err, done.err
    posterior = diffem.load(trained).posterior
    for i in range(12):
        size, name = SIZES[i % 2], f"image_{i:02d}"
        samples = np.stack([read(out / "samples" / f"{name}_{s:02d}.tif") for s in range(3)])
        mean, std = (read(out / part / f"{name}.tif") for part in ("mean", "std"))
        assert samples.dtype == np.uint16 and samples.shape == (3, *size)
        assert mean.dtype == std.dtype == np.float32 and mean.shape == std.shape == size
        # Samples are rounded.
        np.testing.assert_allclose(mean, samples.mean(axis=0), rtol=0, atol=0.51)
        np.testing.assert_allclose(std, samples.std(axis=0, ddof=1), rtol=0, atol=1.5)
        # The noise is less than it was.
        clean = scene(size, i)
        assert np.abs(mean - clean).mean() < 0.8 * np.abs(noisy(size, i) - clean).mean()
    # The object draws what the command writes: image 0 is the first of both.
    drawn = posterior.sample(noisy(SIZES[0], 0)[None], n=1)
    first = read(out / "samples" / "image_00_00.tif").astype(np.float64)
    assert drawn.shape == (1, 1, *SIZES[0])
    assert np.abs(drawn[0, 0].numpy() - first).max() <= 0.51


def test_arrays_of_large_images(trained: Path, tmp_path: Path) -> None:
    y = np.stack([noisy((21, 35), i) for i in range(2)])
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "y.npz", y=y[:, None].astype(np.float32))
    for suffix, shape in (("npy", (21, 35)), ("npz", (1, 21, 35))):
        out = tmp_path / suffix
        done = run(
            sample.main, trained, "--input", tmp_path / f"y.{suffix}", "--n", 2, "--out", out
        )
        assert done.code == 0, done.err
        if suffix == "npz":
            found = dict(np.load(out / "samples.npz"))
        else:
            found = {part: np.load(out / f"{part}.npy") for part in ("samples", "mean", "std")}
        assert found["samples"].shape == (2, 2, *shape)
        assert found["samples"].dtype == (np.uint16 if suffix == "npy" else np.float32)
        assert found["mean"].shape == found["std"].shape == (2, *shape)
        drawn = found["samples"].astype(np.float64)
        np.testing.assert_allclose(found["mean"], drawn.mean(axis=1), rtol=1e-6, atol=0.51)
        np.testing.assert_allclose(found["std"], drawn.std(axis=1, ddof=1), rtol=1e-4, atol=1.5)


def test_stacks_of_large_images_come_back_as_stacks(trained: Path, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    folder, out = tmp_path / "stacks", tmp_path / "out"
    folder.mkdir()
    shapes = {"a": (3, 20, 36), "b": (2, 24, 17)}
    for name, (pages, *size) in shapes.items():
        stack = np.stack([noisy((size[0], size[1]), i) for i in range(pages)])
        tifffile.imwrite(folder / f"{name}.tif", stack, photometric="minisblack")
    done = run(sample.main, trained, "--input", folder, "--n", 2, "--out", out)
    assert done.code == 0, done.err
    for name, shape in shapes.items():
        drawn = np.stack(
            [tifffile.imread(out / "samples" / f"{name}_{s:02d}.tif") for s in (0, 1)]
        )
        mean = tifffile.imread(out / "mean" / f"{name}.tif")
        assert drawn.dtype == np.uint16 and drawn.shape == (2, *shape) and mean.shape == shape
        np.testing.assert_allclose(mean, drawn.mean(axis=0), rtol=0, atol=0.51)
        assert not np.array_equal(drawn[0, 0], drawn[0, 1])


def test_an_overlap_of_ones_own(trained: Path, tmp_path: Path) -> None:
    posterior = diffem.load(trained).posterior
    y = noisy((20, 30), 0)[None]
    default, half = posterior.sample(y), posterior.sample(y, overlap=SIDE // 2)
    assert torch.equal(default, half)
    assert not torch.equal(default, posterior.sample(y, overlap=2))
    assert not torch.equal(default, posterior.sample(y, seed=5))
    for overlap, sentence in ((16, "must be less than 16"), (-1, "a whole number of at least 0")):
        with pytest.raises(UserError, match=f"overlap {sentence}" if overlap > 0 else sentence):
            posterior.sample(y, overlap=overlap)
    with pytest.raises(UserError, match=r"overlap=2 has no effect on .* not larger than \[1, 16"):
        posterior.sample(y[:, :16, :16], overlap=2)


def refused(run_dir: Path, file: Path, *more: object) -> Done:
    return run(sample.main, run_dir, "--input", file, "--out", file.parent / "out", *more)


def test_what_cannot_be_tiled_is_one_sentence(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "y.npy"
    cases = [
        (np.zeros((2, 15, 40)), (), "have shape [15, 40]"),
        (np.zeros((2, 2, 20, 20)), (), "have shape [2, 16, 16]"),
        (np.full((2, 20, 20), np.nan), (), "only NaN"),
        (np.where(np.eye(20) > 0, np.nan, np.ones((2, 20, 20))), (), "train with corruption=mask"),
        (np.zeros((2, 20, 20)), ("--overlap", 16), "overlap must be less than 16"),
        (
            np.zeros((2, 20, 20)),
            ("--overlap", -1),
            "--overlap must be a whole number of at least 0",
        ),
        (
            np.zeros((2, 16, 16)),
            ("--overlap", 3),
            "--overlap=3 has no effect on images of the run",
        ),
    ]
    for y, more, sentence in cases:
        np.save(file, y)
        done = refused(trained, file, *more)
        assert done.code == 1 and sentence in done.err, done.err
        assert {f.name for f in tmp_path.iterdir()} == {"y.npy"}
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, size in (("a", (20, 20)), ("b", (20, 12))):
        Image.fromarray(noisy(size, 0)).save(folder / f"{name}.tif")
    done = refused(trained, folder)
    assert "b.tif has shape [1, 20, 12], which is smaller than [16, 16]; give larger" in done.err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["corruption=blur", "corruption.sigma=1", "corruption.kernel_size=3"],
         "sampling images that are not of the run's shape [1, 8, 8] needs a corruption of each"),
        (["method=em_mmps"], "needs a run of method=diffem, and the posterior of this one is MM"),
    ],
)  # fmt: skip
def test_channels_and_posteriors_that_cannot_are_refused(
    settings: list[str], sentence: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "y.npy", np.random.default_rng(0).normal(size=(20, 8, 8)))
    run_dir = run_here(
        tmp_path / "run",
        *("dataset=measurements", f"dataset.path={tmp_path / 'y.npy'}", *settings),
    )
    np.save(tmp_path / "large.npy", np.zeros((2, 9, 9)))
    done = refused(run_dir, tmp_path / "large.npy")
    assert done.code == 1 and sentence in done.err, done.err
    with pytest.raises(UserError, match=re.escape(sentence)):
        diffem.load(run_dir).posterior.sample(np.zeros((2, 9, 9)))


SCRIPT = """
import re, sys
from pathlib import Path
from diffem.cli.sample import main

main(sys.argv[1:])
# Not of getrusage, which begins with what the parent had when it started this process.
status = Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1)) / 1024)
"""


def peak(run_dir: Path, side: int, folder: Path) -> float:
    """Returns the peak memory of `diffem sample` on one image, two samples of it, in MiB."""
    (folder / "large").mkdir(parents=True)
    Image.fromarray(noisy((side, side), 0)).save(folder / "large" / "image.tif")
    arguments = ["--input", folder / "large", "--n", 2, "--overlap", 8, "--out", folder / "out"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run_dir), *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT,
        # Memory that is freed is given back at once, so that two processes of one size take
        # equally much; as it is by default, they differ by 20 MiB.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read(folder / "out" / "samples" / "image_01.tif").shape == (side, side)
    return float(done.stdout.split()[-1])


LINUX = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux's own count")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on 64 × 64 patches, whose samples take two evaluations."""
    folder = tmp_path_factory.mktemp("wide")
    np.save(folder / "y.npy", np.stack([noisy((128, 128), i) for i in range(6)]))
    return run_here(
        folder / "run",
        *("dataset=measurements", f"dataset.path={folder / 'y.npy'}", "dataset.patch=64"),
        *("corruption=denoising", f"corruption.noise.std={STD}", "sampler=sde"),
    )


@LINUX
def test_memory_grows_by_a_few_images_of_the_size(wide: Path, tmp_path: Path) -> None:
    small, large = (peak(wide, side, tmp_path / str(side)) for side in (384, 1152))
    # With 56 bytes a pixel, 4,096 × 4,096 take 0.94 GB beside what torch itself takes.
    assert large - small < 56 * (1152**2 - 384**2) / 2**20


@LINUX
@pytest.mark.slow
def test_4096_pixels_squared_take_less_than_2_gigabytes(wide: Path, tmp_path: Path) -> None:
    used = peak(wide, 4096, tmp_path)
    print(f"peak memory {used:.0f} MiB")
    assert used * 2**20 < 2e9
