"""Projections along parallel rays, against sums of pixels and against scikit-image's."""

import math

import numpy as np
import pytest
import torch
from skimage.transform import radon

from diffem.corruption import Radon
from diffem.runtime.errors import UserError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(side: int) -> np.ndarray:
    """Returns a smooth image that ends before its border."""
    row, column = np.indices((side, side)) - side // 2
    one = np.exp(-((row - 3) ** 2 / 30 + (column + 5) ** 2 / 12))
    return one + 0.5 * np.exp(-((row + 6) ** 2 / 20 + (column - 4) ** 2 / 40))


def test_projections_along_the_axes_are_sums_of_pixels() -> None:
    x = torch.randn(2, 3, 7, 9, generator=seeded(0), dtype=torch.float64)
    operator = Radon((3, 7, 9), angles=[0.0, 90.0])
    phi = operator.draw(2, seeded(1))
    y = operator.apply(x, phi)
    assert y.shape == (2, 3, 2, 13) == (2, *operator.measured_shape)  # 13 > √(49 + 81)
    expected = torch.zeros_like(y)
    expected[:, :, 0, 2:11] = x.sum(dim=2)
    expected[:, :, 1, 3:10] = x.sum(dim=3).flip(-1)  # the last row comes first
    torch.testing.assert_close(y, expected)


def test_every_projection_keeps_the_sum() -> None:
    operator = Radon((1, 8, 6), angles=7)
    x = torch.randn(3, 1, 8, 6, generator=seeded(2), dtype=torch.float64)
    y = operator.apply(x, operator.draw(3, seeded(3)))
    torch.testing.assert_close(y.sum(dim=-1), x.sum(dim=(2, 3))[..., None].expand(-1, -1, 7))


def test_projections_are_those_of_scikit_image() -> None:
    """scikit-image turns the image by linear interpolation.

    Its error is at most |x''| / 8 at each of the points, for |x''| below 2 / 12 · 1.2 of the
    narrower blob, where a ray meets fewer than 10 pixels of it: below 0.25 of sums up to 10.
    """
    angles, image = [0.0, 30.0, 77.0, 120.0], blobs(33)
    operator = Radon((1, 33, 33), angles=angles)
    found = operator.apply(torch.from_numpy(image)[None, None], operator.draw(1, seeded(4)))
    expected = radon(image, theta=np.array(angles), circle=False).T
    np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=0, atol=0.25)
    assert np.abs(expected).max() > 10


def test_many_projections_are_inverted_by_filtered_back_projection() -> None:
    image = torch.from_numpy(blobs(33))[None, None]
    operator = Radon((1, 33, 33), angles=60)
    phi = operator.draw(1, seeded(5))
    y = operator.apply(image, phi)
    lifted = operator.lift(y, phi)
    assert (lifted - image).abs().max() < 0.02 * image.max()
    # Those that were not taken are left out, not taken for zero.
    half = phi.clone()
    half[:, ::2] = math.nan
    y = y * operator.measured_mask(y, half)
    assert (operator.lift(y, half) - image).abs().max() < 0.02 * image.max()


def test_angles_are_each_image_s_own_and_at_even_distances() -> None:
    phi = Radon((1, 8, 8), angles=6).draw(1000, seeded(6))
    torch.testing.assert_close(phi.diff(dim=1), torch.full((1000, 5), 30.0))
    assert 0 <= phi[:, 0].min() < 1 and 29 < phi[:, 0].max() < 30
    assert Radon((1, 8, 8), angles=6).covers and not Radon((1, 8, 8), angles=[0, 5]).covers


def test_some_projections_are_left_out() -> None:
    operator = Radon((1, 8, 8), angles=6)
    phi = operator.draw(200, seeded(7))
    x = torch.randn(200, 1, 8, 8, generator=seeded(8))
    y = operator.apply(x, phi)
    left = operator.leave_out(phi, 0.3, seeded(9))
    mask = operator.measured_mask(y, left)
    assert torch.equal(operator.apply(x, left), y * mask)
    # 1200 draws: 4 standard errors.
    assert abs(1 - mask.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 1200)
    v = torch.randn(y.shape, generator=seeded(10))
    torch.testing.assert_close(operator.adjoint(v, left), operator.adjoint(v * mask, phi))


def test_the_network_sees_a_star_of_the_angles() -> None:
    operator = Radon((1, 9, 9), angles=4)
    phi = torch.tensor([[0.0, 45.0, 90.0, 135.0]])
    (star,) = operator.maps(torch.zeros(1, 1, 4, operator.bins), phi)
    assert star.shape == (1, 1, 9, 9) and star[0, 0, 4, 4] == pytest.approx(1)
    assert min(star[0, 0, 4, 0], star[0, 0, 0, 0], star[0, 0, 0, 4]) > star[0, 0, 0, 2] + 0.15
    assert Radon((1, 9, 9), angles=[0, 45]).maps(torch.zeros(1, 1, 2, 13), phi[:, :2]) == []


@pytest.mark.parametrize(
    ("shape", "angles", "sentence"),
    [
        ((2, 16), 4, "corruption=radon needs images of shape (C, H, W)"),
        ((1, 8, 8), 0, "corruption.angles must be a whole number of at least 1, got 0"),
        ((1, 8, 8), [], "corruption.angles must be a whole number"),
        ((1, 8, 8), [0.0, 400.0], "corruption.angles: each must be a number in [-360, 360]"),
    ],
)
def test_bad_arguments(shape: tuple[int, ...], angles: int | list[float], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        Radon(shape, angles=angles)
    assert sentence in str(error.value)
