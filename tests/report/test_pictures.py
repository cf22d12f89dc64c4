"""What the page shows of measurements, as it is kept in a run directory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from diffem.report.pictures import (
    GAP,
    SIDE,
    data_uri,
    grid,
    load_pictures,
    save_pictures,
    save_prior_pictures,
    strip,
)
from diffem.storage.npz import load_arrays, save_arrays


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((1, 8, 8), (8, 8, 1)),
        ((3, 32, 20), (32, 20, 3)),
        ((2, 8, 8), (8, 8, 1)),  # real and imaginary parts are not colours
        ((1, 300, 200), (75, 50, 1)),
        ((4, 40), (4, 40, 1)),  # a signal
        ((1, 500), (1, 83, 1)),
        ((1, 5, 8, 6), (8, 6, 1)),  # of a volume the middle slice
        ((2, 4, 4, 4), (4, 4, 1)),
    ],
)
def test_shapes(shape: tuple[int, ...], kept: tuple[int, ...], tmp_path: Path) -> None:
    samples = torch.rand(10, 7, *shape) * 2 - 1
    save_pictures(tmp_path / "a.npz", samples, samples[0], samples[1])
    held = load_arrays(tmp_path / "a.npz")
    for name in ("measurement", "mean", "truth"):
        assert held[name].shape == (6, *kept) and held[name].dtype == np.uint8
    assert held["samples"].shape == (8, 6, *kept)
    assert held["std"].shape[1:] == (*kept[:2],) or len(shape) == 2
    assert max(held["mean"].shape[1:3]) <= SIDE
    assert load_pictures(tmp_path / "a.npz").keys() == held.keys()
    for images in (held["mean"], held["samples"][0]):
        assert data_uri(strip(list(images))).startswith("data:image/png;base64,")


CHANGES: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda a: a[:0],
    lambda a: a[0],
    lambda a: a[..., :0],
    lambda a: a.astype(complex),
    lambda a: a.astype(str),
    lambda a: np.full(a.shape, np.nan),
    lambda a: np.zeros((), a.dtype),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_no_run_writes_is_not_shown(
    change: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    samples, path = torch.rand(3, 4, 1, 8, 8), tmp_path / "a.npz"
    points, pairs = samples.flatten(2), (samples[0], samples[1], torch.rand(4))
    for save in (
        lambda: save_pictures(path, samples, samples[0], samples[1]),
        lambda: save_pictures(path, points, points[0], points[1]),
        lambda: save_prior_pictures(path, samples[0], pairs),
    ):
        save()
        held = dict(load_pictures(path))
        assert held
        for name, array in held.items():
            if name.endswith("points") and change in (CHANGES[0], CHANGES[5]):
                continue  # none are drawn
            save_arrays(path, {**held, name: change(array)})
            assert load_pictures(path) == {}, name
        for name in held.keys() - {"points", "true_points", "truth"}:
            save_arrays(path, {other: held[other] for other in held if other != name})
            assert load_pictures(path) == {}, name


def test_values(tmp_path: Path) -> None:
    """-1 is black and 1 white; what is beyond is clipped, and a std is kept as it is."""
    x = torch.tensor([-1.0, 1.0, 3.0, torch.nan]).view(1, 1, 1, 2, 2).expand(4, 1, 1, 2, 2).clone()
    x[:, 0, 0, 0, 0] = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    save_pictures(tmp_path / "a.npz", x, x[0], None)
    held = load_arrays(tmp_path / "a.npz")
    assert held["measurement"].ravel().tolist() == [0, 255, 255, 127]
    assert held["mean"].ravel()[0] == 128
    assert held["std"].ravel()[0] == pytest.approx(2 / 3**0.5) and held["std"].ravel()[1] == 0
    assert "truth" not in held


def test_vectors_are_points(tmp_path: Path) -> None:
    samples = torch.randn(4, 30, 5)
    save_pictures(tmp_path / "a.npz", samples, samples[0], samples[1])
    held = load_arrays(tmp_path / "a.npz")
    assert held["points"].shape == (120, 2) and held["true_points"].shape == (30, 2)
    np.testing.assert_array_equal(held["points"][:30], samples[0, :, :2])
    save_prior_pictures(tmp_path / "b.npz", torch.randn(9, 1), None)
    assert load_arrays(tmp_path / "b.npz")["points"].shape == (9, 2)


def test_strips_have_gaps_that_let_the_page_through() -> None:
    images = np.full((3, 8, 8, 1), 255, np.uint8)
    for across in (False, True):
        whole = strip(list(images), across=across)
        whole = whole.swapaxes(0, 1) if across else whole
        assert whole.shape == (3 * 64 + 2 * GAP, 64, 4)
        assert not whole[64 : 64 + GAP].any() and whole[:64].min() == 255
    assert grid(np.zeros((11, 8, 8, 1), np.uint8)).shape == (128 + GAP, 8 * 64 + 7 * GAP, 4)
