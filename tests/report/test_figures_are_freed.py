"""A figure is gone when it is saved, and not when Python's collector comes by."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from diffem.report.figures import save_panel, save_samples

SHAPES = [(3, 1, 8, 8), (3, 2, 8, 8), (3, 5, 4, 8, 8), (3, 2, 9), (10, 5)]


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
