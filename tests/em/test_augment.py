"""Augmentation: one draw for each image, exact where nothing is asked."""

import colorsys

import torch

from diffem.em import Augment
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
