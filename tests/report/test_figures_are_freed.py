"""A figure is gone when it is saved, and not when Python's collector comes by."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffem.report.figures import _show, save_panel, save_samples

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


def test_of_a_complex_image_the_modulus_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(Axes, "imshow", lambda self, image, **_: drawn.append(image))
    axis = Figure().subplots()
    _show(axis, torch.tensor([0.3, -0.4])[:, None, None].expand(2, 4, 4), (-1.0, 1.0))
    np.testing.assert_allclose(drawn[0], np.full((4, 4), 0.5))
