"""Datasets load, and bad folders are told in one sentence."""

import gzip
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from diffem.data import Digits, HubImages, IdxImages, Manifold
from diffem.data.idx import read_idx
from diffem.data.scale import Scale
from diffem.runtime.errors import UserError


def write_idx(path: Path, images: np.ndarray, code: int = 0x08) -> None:
    header = bytes([0, 0, code, images.ndim]) + np.array(images.shape, ">u4").tobytes()
    opened = gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb")
    with opened as file:
        file.write(header + images.tobytes())


def write_folder(folder: Path, train: np.ndarray, heldout: np.ndarray, code: int = 0x08) -> None:
    write_idx(folder / "train-images-idx3-ubyte.gz", train, code)
    write_idx(folder / "t10k-images-idx3-ubyte", heldout, code)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)


def test_digits_are_split_without_overlap() -> None:
    train, heldout = Digits([1, 8, 8], train=1500).load()
    assert train.shape == (1500, 1, 8, 8) and heldout.shape == (297, 1, 8, 8)
    assert train.min() == -1 and train.max() == 1
    both = torch.cat([train, heldout]).flatten(1)
    assert len(both.unique(dim=0)) == 1797  # scikit-learn's digits are all different


def test_digits_labels_go_with_their_images() -> None:
    """scikit-learn's own pairs, found again by the pixels."""
    digits = Digits([1, 8, 8], train=1500)
    pixels, shown = load_digits(return_X_y=True)
    pairs = {tuple(x): y for x, y in zip(pixels, shown, strict=True)}
    for x, labels in zip(digits.load(), digits.labels(), strict=True):
        found = [pairs[tuple(image)] for image in ((x.flatten(1) + 1) * 8).tolist()]
        assert labels.tolist() == found


def test_idx_labels(tmp_path: Path, images: np.ndarray) -> None:
    write_folder(tmp_path, images, images[:2])
    idx = IdxImages(str(tmp_path), [1, 4, 5], train=5)
    with pytest.raises(UserError, match="has no train-labels-idx1-ubyte"):
        idx.labels()
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([3, 1, 4, 1, 5, 9], np.uint8))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([2, 6], np.uint8))
    train, heldout = idx.labels()
    assert train.tolist() == [3, 1, 4, 1, 5] and heldout.tolist() == [2, 6]
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", images)
    with pytest.raises(UserError, match=r"is not an idx file of labels \(N,\)"):
        idx.labels()


def test_idx_round_trip(tmp_path: Path, images: np.ndarray) -> None:
    write_folder(tmp_path, images, images[:2])
    train, heldout = IdxImages(str(tmp_path), [1, 4, 5], train=5).load()
    expected = torch.from_numpy(images.astype(np.float32))[:, None] / 127.5 - 1
    assert torch.equal(train, expected[:5]) and torch.equal(heldout, expected[:2])


@pytest.mark.parametrize(("code", "dtype"), [(0x0D, ">f4"), (0x0B, ">i2"), (0x0E, ">f8")])
def test_idx_of_other_types_needs_a_range(tmp_path: Path, code: int, dtype: str) -> None:
    x = np.linspace(-500, 1500, 40).reshape(2, 4, 5).astype(dtype)
    write_folder(tmp_path, x, x, code=code)
    with pytest.raises(
        UserError, match=r"dataset\.range must say .* with values in \[-500, 1500\]"
    ):
        IdxImages(str(tmp_path), [1, 4, 5]).load()
    train, _ = IdxImages(str(tmp_path), [1, 4, 5], range=[-500, 1500]).load()
    expected = (x.astype(np.float64) - 500) / 1000
    np.testing.assert_allclose(train[:, 0].numpy(), expected, atol=1e-7, rtol=1e-7)
    assert train.min() == -1 and train.max() == 1


def test_idx_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="apt-get install dataset-fashion-mnist"):
        IdxImages(str(tmp_path / "nowhere"), [1, 28, 28]).load()


def test_idx_is_empty(tmp_path: Path, images: np.ndarray) -> None:
    write_folder(tmp_path, images[:0], images)
    with pytest.raises(UserError, match="train split is empty"):
        IdxImages(str(tmp_path), [1, 4, 5]).load()


def test_idx_shapes_are_mixed(tmp_path: Path, images: np.ndarray) -> None:
    write_folder(tmp_path, images, images[:, :3])
    with pytest.raises(UserError, match=r"heldout images have shape \[1, 3, 5\]"):
        IdxImages(str(tmp_path), [1, 4, 5]).load()


def test_idx_holds_nan(tmp_path: Path) -> None:
    x = np.zeros((3, 4, 5), ">f4")
    x[1, 0, 0] = np.nan
    write_folder(tmp_path, x, x, code=0x0D)
    with pytest.raises(UserError, match="train image 1 holds NaN or infinity"):
        IdxImages(str(tmp_path), [1, 4, 5], range=[-1, 1]).load()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is not an idx file"),
        (b"not an idx file at all", "is not an idx file"),
        (
            bytes([0, 0, 8, 3]) + np.array([2, 4, 5], ">u4").tobytes() + b"\0" * 39,
            "holds 39 bytes",
        ),
    ],
)
def test_idx_is_damaged(tmp_path: Path, images: np.ndarray, data: bytes, sentence: str) -> None:
    write_folder(tmp_path, images, images)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(data)
    with pytest.raises(UserError, match=sentence):
        IdxImages(str(tmp_path), [1, 4, 5]).load()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_images_that_are_not_used_are_not_read(
    tmp_path: Path, images: np.ndarray, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 12, 7: all 60,000 images of Fashion-MNIST were unpacked for 1,500."""
    path, many = tmp_path / f"images{suffix}", np.concatenate([images] * 10_000)
    write_idx(path, many)
    tracemalloc.start()
    found = read_idx(path, limit=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, many[:4])
    assert peak < many.nbytes / 4
    for limit in (60_000, 99_999, None):
        np.testing.assert_array_equal(read_idx(path, limit=limit), many)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("change", [-5, 5])
def test_idx_of_another_length_is_refused_where_a_part_is_used(
    tmp_path: Path, images: np.ndarray, suffix: str, change: int
) -> None:
    path = tmp_path / f"images{suffix}"
    write_idx(path, images)
    content = gzip.decompress(path.read_bytes()) if suffix else path.read_bytes()
    content = content[:change] if change < 0 else content + bytes(change)
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(UserError, match="announces 6 × 4 × 5 entries but holds"):
        read_idx(path, limit=2)
    if suffix:
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(UserError, match=r"cannot be read|but holds"):
            read_idx(path, limit=2)
        parts = [images.tobytes()[:50], images.tobytes()[50:]]  # of two gzip files
        write_idx(path, images)
        head = gzip.decompress(path.read_bytes())[:16]
        path.write_bytes(b"".join(map(gzip.compress, [head + parts[0], parts[1]])))
        np.testing.assert_array_equal(read_idx(path, limit=2), images[:2])


def test_idx_gzip_is_cut(tmp_path: Path, images: np.ndarray) -> None:
    write_folder(tmp_path, images, images)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        IdxImages(str(tmp_path), [1, 4, 5]).load()


def test_manifold_is_a_curve_in_its_box() -> None:
    train, heldout = Manifold([5], train=2000, heldout=1000).load()
    assert train.abs().max() <= 2.01  # scaled by a grid of 4,097 points
    # A curve of finite length: 2,000 points leave no held-out point far from its neighbour.
    assert torch.cdist(heldout, train).min(dim=1).values.max() < 0.5
    assert torch.equal(train, Manifold([5], train=2000, heldout=1000).load().train)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A local image folder in the hub's layout, 12 × 10 RGB images."""
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for i in range(3):
            pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{i}.png")
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_hub_images_from_a_folder(folder: Path) -> None:
    hub = HubImages(str(folder), [3, 8, 8], column="image", splits=["train", "test"], crop=8)
    train, heldout = hub.load()
    pixels = np.asarray(Image.open(folder / "train" / "0.png"))[1:9, 2:10].transpose(2, 0, 1)
    assert heldout.shape == (3, 3, 8, 8)
    np.testing.assert_allclose(train[0].numpy(), pixels / 127.5 - 1, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_hub_images_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    hub = HubImages("nobody/nothing", [3, 8, 8], column="image", splits=["train", "test"])
    with pytest.raises(UserError, match="neither in the Hugging Face cache nor reachable"):
        hub.load()


@pytest.mark.filterwarnings("ignore")
def test_hub_images_have_no_such_column(folder: Path) -> None:
    hub = HubImages(str(folder), [3, 8, 8], column="img", splits=["train", "test"])
    with pytest.raises(UserError, match=r"dataset\.column must be one of"):
        hub.load()


@pytest.mark.filterwarnings("ignore")
def test_hub_labels(tmp_path: Path) -> None:
    """A folder whose subfolders are the labels, in the hub's layout."""
    for split, names in (("train", "aab"), ("test", "ba")):
        for i, name in enumerate(names):
            folder = tmp_path / split / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(folder / f"{i}.png")
    hub = HubImages(
        str(tmp_path), [3, 8, 8], column="image", splits=["train", "test"], limits=(2, None)
    )
    train, heldout = hub.labels()
    red = ((hub.load().heldout[:, 0, 0, 0] + 1) * 127.5).round().tolist()
    assert train.tolist() == [0, 0] and dict(zip(red, heldout.tolist(), strict=True)) == {
        0: 1,
        10: 0,
    }
    hub.label = "kind"
    with pytest.raises(UserError, match=r"dataset\.label must be one of"):
        hub.labels()


def hub_of(folder: Path, suffix: str, images: np.ndarray, *more: np.ndarray) -> HubImages:
    """Writes images in the hub's layout; more images stand behind those of the training split."""
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for i, image in enumerate([*images, *(more if split == "train" else ())]):
            Image.fromarray(image).save(folder / split / f"{i}{suffix}")
    shape = [images.shape[-1] if images.ndim == 4 else 1, 6, 6]
    return HubImages(str(folder), shape, column="image", splits=["train", "test"])


RNG = np.random.default_rng(2)
DEEP = RNG.integers(0, 65536, (3, 8, 6), dtype=np.uint16)
FLOATS = RNG.uniform(-300, 700, (3, 8, 6)).astype(np.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_images_keep_their_values(tmp_path: Path, suffix: str) -> None:
    train, _ = hub_of(tmp_path, suffix, DEEP).load()
    cropped = DEEP[:, 1:7].astype(np.float64)
    np.testing.assert_allclose(train[:, 0].numpy(), cropped / 32767.5 - 1, atol=1e-6)
    assert (train.abs() == 1).float().mean() < 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("images", [DEEP, FLOATS])
def test_deep_images_are_resized_in_their_own_depth(tmp_path: Path, images: np.ndarray) -> None:
    """Twice as large images whose blocks of 2 × 2 are equal: bicubic shrinking is a mean of them.

    A kernel of 8 bits would be off by up to 1/255 of the range.
    """
    ramp = np.linspace(images.min(), images.max(), 12)
    image = np.broadcast_to(ramp, (12, 12)).astype(images.dtype)
    hub = hub_of(tmp_path, ".tif", np.stack([image] * 2))
    hub.scale = Scale(float(ramp[0]), float(ramp[-1]))
    found = hub.load().train[0, 0, 2].numpy()
    # Away from the border the symmetric kernel takes a ramp to the ramp at the blocks' centres.
    expected = ramp.reshape(6, 2).mean(axis=1) / (ramp[-1] - ramp[0]) * 2
    expected -= expected.mean()
    rounding = 2 / (ramp[-1] - ramp[0]) if images.dtype == np.uint16 else 1e-6
    np.testing.assert_allclose(found[2:4], expected[2:4], atol=rounding)


@pytest.mark.filterwarnings("ignore")
def test_float_images_need_a_range(tmp_path: Path) -> None:
    hub = hub_of(tmp_path, ".tif", FLOATS)
    with pytest.raises(UserError, match=r"dataset\.range must say .* is float32 with values in"):
        hub.load()
    hub.scale = Scale(-300, 700)
    expected = (FLOATS[:, 1:7].astype(np.float64) - 200) / 500
    np.testing.assert_allclose(hub.load().train[:, 0].numpy(), expected, atol=1e-6)


RGBA = RNG.integers(0, 256, (2, 6, 6, 4), dtype=np.uint8)
OPAQUE = np.concatenate([RGBA[..., :3], np.full_like(RGBA[..., 3:], 255)], axis=-1)


@pytest.mark.filterwarnings("ignore")
def test_transparent_images_are_refused(tmp_path: Path) -> None:
    hub = hub_of(tmp_path / "opaque", ".png", OPAQUE)
    hub.shape = (3, 6, 6)
    pixels = np.moveaxis(OPAQUE[..., :3], -1, 1).astype(np.float32)
    np.testing.assert_array_equal(hub.load().train.numpy(), pixels / np.float32(127.5) - 1)
    hub = hub_of(tmp_path / "seen through", ".png", OPAQUE, RGBA[0])
    hub.shape = (3, 6, 6)
    with pytest.raises(UserError, match=r"image 2 of .*2\.png\) has transparent pixels"):
        hub.load()


@pytest.mark.filterwarnings("ignore")
def test_palettes_are_converted_exactly(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
    index = RNG.integers(0, 16, (6, 6), dtype=np.uint8)
    image = Image.new("P", (6, 6))
    image.putpalette(colours.tobytes())
    image.putdata(index.ravel().tolist())
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        image.save(tmp_path / split / "0.png")
    hub = HubImages(str(tmp_path), [3, 6, 6], column="image", splits=["train", "test"])
    expected = np.moveaxis(colours[index], -1, 0).astype(np.float32) / np.float32(127.5) - 1
    np.testing.assert_array_equal(hub.load().train[0].numpy(), expected)


@pytest.mark.filterwarnings("ignore")
def test_types_are_not_mixed(tmp_path: Path) -> None:
    hub = hub_of(tmp_path, ".png", DEEP, (DEEP[0] // 256).astype(np.uint8))
    with pytest.raises(UserError, match=r"image 3 of .* is uint8, but image 0 is uint16"):
        hub.load()


@pytest.mark.filterwarnings("ignore")
def test_16_bit_rgb_is_refused(tmp_path: Path) -> None:
    """Pillow reads the upper 8 bits of it without a word."""
    hub = hub_of(tmp_path, ".png", RGBA[..., :3])
    (tmp_path / "train" / "1.png").write_bytes(rgb16_png(RNG.integers(0, 65536, (6, 6, 3))))
    with pytest.raises(UserError, match=r"1\.png\) \(16 bits of RGB.* would lose values"):
        hub.load()


def rgb16_png(pixels: np.ndarray) -> bytes:
    """Returns a PNG file of 16-bit RGB, which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
