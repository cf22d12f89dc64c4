"""Augmentation of reconstructions before they are corrupted afresh: flip, hue, saturation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check

# NTSC's YIQ: luma, and a chroma plane in which a rotation changes the hue.
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class Augment:
    """Draws one flip, one hue and one saturation for each image.

    ỹ is drawn from the augmented image, so that both carry the same augmentation.

    Arguments:
        flip: Whether to mirror the last axis of half of the images.
        hue: The largest turn of the hue, as a fraction of the full circle; RGB images only.
        saturation: The largest relative change of the saturation, in [0, 1); RGB images only.

    Raises:
        UserError: If a number is outside [0, 1), or nothing is augmented.
    """

    def __init__(self, *, flip: bool = True, hue: float = 0.0, saturation: float = 0.0) -> None:
        self.flip = flip
        self.hue = check("m_step.augment.hue", hue)
        self.saturation = check("m_step.augment.saturation", saturation)
        if not (flip or hue or saturation):
            raise UserError("m_step.augment changes nothing; set it to null")

    def check(self, shape: Sequence[int]) -> None:
        """Refuses images that have no colours to change.

        Arguments:
            shape: The shape of an image, (C, *S).

        Raises:
            UserError: If they are not RGB images.
        """
        for name, value in (("hue", self.hue), ("saturation", self.saturation)):
            if value and shape[0] != 3:
                raise UserError(
                    f"m_step.augment.{name}={value} has no effect on images of {shape[0]} "
                    "channels, only on RGB images; set it to 0"
                )

    def __call__(self, x: Tensor) -> Tensor:
        """Returns augmented images, (B, C, *S), drawn from the global generators."""
        if self.flip:
            mirrored = torch.rand(len(x), device=x.device) < 0.5
            x = torch.where(mirrored.view(-1, *(1,) * (x.ndim - 1)), x.flip(-1), x)
        if (self.hue or self.saturation) and x.shape[1] == 3:
            with torch.autocast(x.device.type, enabled=False):
                x = self._recolour(x)
        return x

    def _recolour(self, x: Tensor) -> Tensor:
        u = 2 * torch.rand(2, len(x), device=x.device) - 1
        angle, gain = 2 * math.pi * self.hue * u[0], 1 + self.saturation * u[1]
        turn = torch.zeros(len(x), 3, 3, device=x.device)
        turn[:, 0, 0] = 1
        turn[:, 1, 1] = turn[:, 2, 2] = gain * angle.cos()
        turn[:, 1, 2], turn[:, 2, 1] = -gain * angle.sin(), gain * angle.sin()
        yiq = torch.tensor(YIQ, device=x.device)
        # Not `inv`, which would make the host wait for the device to report an error.
        matrix = torch.linalg.inv_ex(yiq).inverse @ turn @ yiq
        # Greys are fixed points of the matrix, so the range [-1, 1] needs no shift.
        return torch.einsum("bij,bj...->bi...", matrix, x)
