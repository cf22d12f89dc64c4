"""Augmentation: one draw for each image, exact where nothing is asked."""

import colorsys

import pytest
import torch

from diffem.em import Augment
from diffem.runtime.errors import UserError
from diffem.runtime.rng import seeded


def test_half_of_the_images_are_mirrored() -> None:
    n = 4000
    x = torch.arange(4.0).expand(n, 1, 2, 4)
    with seeded(0):
        y = Augment(flip=True)(x)
    mirrored = (y == x.flip(-1)).flatten(1).all(dim=1)
    assert (mirrored | (y == x).flatten(1).all(dim=1)).all()
    assert abs(mirrored.float().mean() - 0.5) < 4 * 0.5 / n**0.5


def test_greys_and_luma_are_kept() -> None:
    grey = torch.linspace(-1, 1, 5).view(1, 1, 1, 5).expand(8, 3, 2, 5)
    colour = torch.rand(8, 3, 2, 5) * 2 - 1
    augment = Augment(flip=False, hue=0.3, saturation=0.5)
    with seeded(1), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(augment(grey), grey, rtol=0, atol=1e-5)
        luma = torch.tensor([0.299, 0.587, 0.114])
        before, after = (
            torch.einsum("c,bchw->bhw", luma, x.double().float())
            for x in (colour, augment(colour))
        )
    torch.testing.assert_close(after, before, rtol=0, atol=2e-2)  # the products above are bfloat16
    assert not torch.allclose(augment(colour), colour, atol=1e-2)


def test_hue_turns_as_asked() -> None:
    """A third of the circle takes red towards green or blue, as the HSV hue has it."""
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(200, 3, 1, 1)
    with seeded(2):
        turned = Augment(flip=False, hue=1 / 3)(red).flatten(1)
    hues = torch.tensor([colorsys.rgb_to_hsv(*pixel.clamp(0, 1).tolist())[0] for pixel in turned])
    turn = torch.minimum(hues, 1 - hues)
    assert turn.max() > 0.2 and turn.min() < 0.02  # uniform between no turn and a third


def test_images_shrink_about_their_centre() -> None:
    """A disc of radius 10 shrinks by the factor that was drawn: its area by the square of it."""
    row, column = torch.meshgrid(torch.arange(32.0), torch.arange(24.0), indexing="ij")
    disc = (((row - 15.5) ** 2 + (column - 11.5) ** 2) < 100).float().expand(
        400, 1, 32, 24
    ) * 2 - 1
    with seeded(3):
        small = Augment(flip=False, zoom=0.5)(disc)
    area = ((small + 1) / 2).sum(dim=(1, 2, 3)) / ((disc[:1] + 1) / 2).sum()
    factor = area.sqrt()
    # Uniform in [0.5, 1]: the mean within 4 standard errors, and 2 % of a pixel's rounding.
    assert abs(float(factor.mean()) - 0.75) < 4 * 0.5 / 12**0.5 / 400**0.5 + 0.02
    assert 0.45 < factor.min() < 0.55 and 0.95 < factor.max() < 1.05
    weight = (small + 1).mean(dim=(0, 1))
    assert abs(float((weight * row).sum() / weight.sum()) - 15.5) < 0.05


def test_images_turn_about_their_centre_in_pixels() -> None:
    """A quarter turn of an oblong image moves a point by the same distance."""
    x = -torch.ones(1, 1, 17, 9)
    x[0, 0, 8, 7] = 1.0  # three pixels right of the centre
    augment = Augment(flip=False, rotate=90.0)
    with seeded(4):
        y = torch.cat([augment(x) for _ in range(200)])
    weight = (y + 1).clamp(min=0).sum(dim=(0, 1))
    row, column = torch.meshgrid(torch.arange(17.0) - 8, torch.arange(9.0) - 4, indexing="ij")
    distance = (weight * (row**2 + column**2).sqrt()).sum() / weight.sum()
    assert abs(float(distance) - 3) < 0.3
    assert weight[8 - 3, 4] > 0 and weight[8 + 3, 4] > 0  # up to a quarter turn, both ways


def test_zoom_and_rotation_need_images() -> None:
    for augment in (Augment(flip=False, zoom=0.2), Augment(flip=False, rotate=10.0)):
        with pytest.raises(UserError, match="needs images of shape"):
            augment.check((5,))
