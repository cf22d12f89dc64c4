"""Choices among labelled images: which are used, thinned and grouped; groups of one's own."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_dataset import write_folder, write_idx

from diffem.corruption import Denoising, GaussianNoise, Mask, make_channel
from diffem.data import Digits, IdxImages
from diffem.data.files import MeasurementFiles
from diffem.runtime.errors import UserError

ALL = Digits([1, 8, 8], train=1500)


def test_only_some_labels_are_used_in_both_splits() -> None:
    some = Digits([1, 8, 8], train=1500, only=[4, 7])
    for x, labels, every, shown in zip(
        some.load(), some.labels(), ALL.load(), ALL.labels(), strict=True
    ):
        there = (shown == 4) | (shown == 7)
        assert torch.equal(labels, shown[there]) and torch.equal(x, every[there])


def test_training_images_are_thinned_and_held_out_ones_are_not() -> None:
    some = Digits([1, 8, 8], train=1500, thin={"4": 0.1, "7": 0.5})
    labels, every = some.labels(), ALL.labels()
    for digit, fraction in ((4, 0.1), (7, 0.5), (3, 1.0)):
        count = int((every.train == digit).sum())
        assert int((labels.train == digit).sum()) == -(-fraction * count // 1)
    assert torch.equal(labels.heldout, every.heldout)
    first = ALL.load().train[every.train == 4][: int((labels.train == 4).sum())]
    assert torch.equal(some.load().train[labels.train == 4], first)


def test_the_last_group_has_all_others() -> None:
    some = Digits([1, 8, 8], train=1500, only=[1, 4, 7, 9], groups=[[4, 7], [9]])
    groups, labels = some.groups(), some.labels()
    assert groups is not None and ALL.groups() is None
    for numbers, shown in zip(groups, labels, strict=True):
        for digit, number in ((4, 0), (7, 0), (9, 1), (1, 2)):
            assert (numbers[shown == digit] == number).all()


def test_idx_files_need_labels_for_a_choice_alone(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)
    write_folder(tmp_path, images, images[:2])
    every = IdxImages(str(tmp_path), [1, 4, 5]).load()
    some = IdxImages(str(tmp_path), [1, 4, 5], only=[1], groups=[[3]])
    with pytest.raises(UserError, match="has no train-labels-idx1-ubyte"):
        some.load()
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([3, 1, 4, 1, 5, 9], np.uint8))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([1, 3], np.uint8))
    assert torch.equal(some.load().train, every.train[[1, 3]])
    groups = some.groups()
    assert groups is not None and groups.train.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"only": [1.5]}, r"dataset\.only: each must be"),
        ({"thin": {"a": 0.1}}, r"dataset\.thin must give labels their fractions"),
        ({"thin": {"4": 0.0}}, r"dataset\.thin must be"),
        ({"thin": [4]}, r"dataset\.thin must give labels"),
        ({"groups": [4]}, r"dataset\.groups must be lists of labels"),
        ({"groups": []}, r"dataset\.groups must be lists of labels"),
        ({"groups": [["x"]]}, r"dataset\.groups: each must be"),
        ({"groups": [[4], []]}, r"dataset\.groups must be lists of labels"),
        ({"groups": [[4], [7, 4]]}, r"dataset\.groups names 4 twice"),
    ],
)
def test_what_is_no_choice_is_refused(given: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Digits([1, 8, 8], train=1500, **given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"only": [4, 42]}, "dataset.only names 42, a label without an image; there are [0, 1,"),
        ({"thin": {"42": 0.1}}, "dataset.thin names 42"),
        ({"thin": {"4": 0.1}, "only": [7, 1]}, "dataset.thin names 4, a label without an image; "
         "there are [1, 7]"),
        ({"groups": [[4], [42]]}, "dataset.groups names 42"),
    ],
)  # fmt: skip
def test_a_label_without_images_is_refused(given: dict, sentence: str) -> None:
    """It would have no effect, and nothing would say so."""
    some = Digits([1, 8, 8], train=1500, **given)
    with pytest.raises(UserError, match=re.escape(sentence)):
        some.labels()


def test_groups_of_a_file_go_with_their_measurements(tmp_path: Path) -> None:
    """y holds the number of its group: by itself, and cut into four patches."""
    groups = np.arange(20) % 3
    y = np.broadcast_to(groups[:, None, None].astype(np.float32), (20, 8, 8))
    np.save(tmp_path / "y.npy", y)
    np.save(tmp_path / "groups.npy", groups)
    for patch, size in ((None, 8), (4, 4)):
        channel = make_channel(
            (Mask((1, size, size), rho=0.5) if patch else Denoising((1, size, size))),
            GaussianNoise(0.1),
        )
        files = MeasurementFiles(
            str(tmp_path / "y.npy"), range=[-1, 1], patch=patch,
            groups=str(tmp_path / "groups.npy"), heldout=0.3,
        )  # fmt: skip
        sets = files.measurement_sets(channel)
        assert sum(map(len, sets)) == 20 * (1 if patch is None else 4)
        for part in sets:
            assert part.groups is not None
            assert torch.equal(part.select(slice(None)).y[:, 0, 0, 0], part.groups.float())


def test_groups_that_do_not_fit_a_file_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.zeros((20, 8, 8)))
    file = tmp_path / "groups.npy"

    def refused() -> str:
        with pytest.raises(UserError) as error:
            MeasurementFiles(str(tmp_path / "y.npy"), groups=str(file))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "cannot be read" in refused()
    np.save(file, np.zeros(19, dtype=int))
    assert "one number for each of 20 measurements, and has the shape [19]" in refused()
    np.save(file, np.zeros(20))
    assert "must hold whole numbers, and is float64; save them by np.save(" in refused()
    np.save(file, np.arange(20) - 1)
    assert "must hold numbers in [0, 2147483647], and has some from -1 to 18" in refused()
    np.save(file, np.full(20, 2**63, dtype=np.uint64))
    assert "from 9223372036854775808 to 9223372036854775808; number the groups from 0" in refused()
