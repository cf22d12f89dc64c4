"""A figure is gone when it is saved, and not when Python's collector comes by."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffem.report.figures import _show, save_panel, save_samples, save_surprise

SHAPES = [(3, 1, 8, 8), (3, 2, 8, 8), (3, 5, 4, 8, 8), (3, 2, 16), (10, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_figures_are_freed(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 12, 7: memory grew by 4 to 27 MB a round."""
    saved: list[weakref.ref[Figure]] = []
    save = Figure.savefig

    def savefig(self: Figure, *args: object, **kwargs: object) -> None:
        saved.append(weakref.ref(self))
        save(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", savefig)
    x = torch.rand(shape)
    save_panel(tmp_path / "panel.png", "panel", [x] * 5)
    save_samples(tmp_path / "samples.png", "samples", x)
    assert len(saved) == 2 and not any(figure() for figure in saved)
    assert gc.isenabled()


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 8, 8), (5, 8, 8), (1, 4, 8, 8), (2, 4, 8, 8)])
def test_images_of_any_number_of_channels_are_drawn(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Complex ones are two channels; volumes have one axis more."""
    x = torch.rand(3, *shape)
    save_panel(tmp_path / "panel.png", "panel", [x] * 5)
    save_samples(tmp_path / "samples.png", "samples", x)
    assert (tmp_path / "panel.png").stat().st_size and (tmp_path / "samples.png").stat().st_size


def test_images_are_shown_in_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a complex image, of two channels, the modulus."""
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(Axes, "imshow", lambda self, image, **_: drawn.append(image))
    x = torch.tensor([[0.3, -0.4], [0.0, 1.0], [0.0, 0.2]])[:, :, None, None].expand(3, 2, 4, 4)
    _show(Figure().subplots(), x, (-1.0, 1.0), columns=2)
    grid = np.zeros((9, 9, 4))  # transparent between them, and where there is none
    for i, (row, column) in enumerate(((0, 0), (0, 5), (5, 0))):
        grid[row : row + 4, column : column + 4] = [*[[0.5, 1.0, 0.2][i]] * 3, 1]
    np.testing.assert_allclose(drawn[0], grid, rtol=1e-6)


def test_pixels_of_large_images_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them took gigabytes in a grid: 8 of 4096 x 4096 in each of five columns."""
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(Axes, "imshow", lambda self, image, **_: drawn.append(image))
    x = torch.rand(1, 3, 2, 2048)
    _show(Figure().subplots(), x, (0.0, 1.0))
    assert drawn[0].shape == (1, 512, 4)
    expected = x[0].reshape(3, 2, 512, 4).mean(dim=(1, 3)).T
    np.testing.assert_allclose(drawn[0][0, :, :3], expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 8), (1, 8, 8), (3, 8, 8), (2, 4, 8, 8)])
def test_what_is_surprising_and_samples_are_drawn_of_any_shape(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Of volumes, and of vectors of one number, it ended in a traceback."""
    x = torch.rand(3, *shape)
    save_surprise(tmp_path / "surprise.png", x, x, [0.1, 0.2, 0.3])
    save_samples(tmp_path / "samples.png", "samples", x)
    assert (tmp_path / "surprise.png").is_file() and (tmp_path / "samples.png").is_file()
