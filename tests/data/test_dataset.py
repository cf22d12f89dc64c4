"""Datasets load, and bad folders are told in one sentence."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from diffem.data import Digits, HubImages, IdxImages, Manifold
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


def test_idx_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 40).reshape(2, 4, 5).astype(">f4")
    write_folder(tmp_path, x, x, code=0x0D)
    train, _ = IdxImages(str(tmp_path), [1, 4, 5]).load()
    np.testing.assert_array_equal(train[:, 0].numpy(), x)


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
        IdxImages(str(tmp_path), [1, 4, 5]).load()


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
