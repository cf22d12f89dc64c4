"""Clean images in the place of some reconstructions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffem.corruption import Denoising, GaussianNoise, Measurement, make_channel
from diffem.data.measurements import MeasurementSet
from diffem.data.scale import Scale
from diffem.em import CleanShare
from diffem.runtime.errors import UserError
from diffem.runtime.rng import seeded

SHAPE = (1, 4, 4)


def measurements(truth: torch.Tensor | None = None) -> MeasurementSet:
    channel = make_channel(Denoising(SHAPE), GaussianNoise(0.1))
    y = torch.zeros(8, *SHAPE)
    drawn = Measurement(y, torch.empty(8, 0), torch.full((8, 1), 0.1))
    return MeasurementSet(drawn, channel, truth, Scale(0.0, 100.0))


def test_a_share_of_the_rows_becomes_clean_images() -> None:
    truth = torch.arange(1.0, 9.0).view(8, 1, 1, 1).expand(8, *SHAPE)
    clean = CleanShare(share=0.25, count=3)
    clean.load(measurements(truth))
    n = 4000
    with seeded(0):
        x = clean(torch.zeros(n, *SHAPE))
    assert (x == x[:, :1, :1, :1]).all()  # whole images
    found = x[:, 0, 0, 0]
    assert set(found.tolist()) == {0.0, 1.0, 2.0, 3.0}  # the first three alone
    assert abs(float((found > 0).float().mean()) - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5


def test_clean_images_of_a_file_are_brought_to_the_scale(tmp_path: Path) -> None:
    np.save(tmp_path / "clean.npy", np.full((5, 4, 4), 75.0))
    clean = CleanShare(share=0.5, path=str(tmp_path / "clean.npy"))
    clean.load(measurements())
    assert clean.images.shape == (5, *SHAPE) and (clean.images == 0.5).all()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "clean.npy", np.zeros((5, 4, 5)))
    clean = CleanShare(share=0.5, path=str(tmp_path / "clean.npy"))
    with pytest.raises(UserError, match=r"holds images of shape \[1, 4, 5\], and the run's"):
        clean.load(measurements())
    with pytest.raises(UserError, match=r"m_step\.clean without a path needs clean images"):
        CleanShare(share=0.5).load(measurements())
    with pytest.raises(UserError, match=r"m_step\.clean\.share must be"):
        CleanShare(share=1.0)
