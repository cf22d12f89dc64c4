"""Augmentation of reconstructions before they are corrupted afresh.

Flips, hue and saturation make more of few images. Transformations T that do not commute with A do
more: where the law of clean images is the same after T, corrupting T x̂ afresh shows in directions
that no measurement of x̂ has (equivariant imaging: Chen, Tachella, Davies 2021, arXiv 2103.14756;
by scale, where A is a blur: Scanvic, Davies, Abry, Tachella 2023, arXiv 2312.11232).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import check

# NTSC's YIQ: luma, and a chroma plane in which a rotation changes the hue.
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class Augment:
    """Draws one flip, hue, saturation, zoom and rotation for each image.

    ỹ is drawn from the augmented image, so that both carry the same augmentation.

    Arguments:
        flip: Whether to mirror the last axis of half of the images.
        hue: The largest turn of the hue, as a fraction of the full circle; RGB images only.
        saturation: The largest relative change of the saturation, in [0, 1); RGB images only.
        zoom: By how much images shrink at most, as a fraction, in [0, 1); the factor is uniform
            in [1 - zoom, 1]. Images (C, H, W) only; the border's pixels continue it.
        rotate: The largest rotation, in degrees, in [0, 180]. Images (C, H, W) only.

    Raises:
        UserError: If a number is out of its range, or nothing is augmented.
    """

    def __init__(
        self,
        *,
        flip: bool = True,
        hue: float = 0.0,
        saturation: float = 0.0,
        zoom: float = 0.0,
        rotate: float = 0.0,
    ) -> None:
        self.flip = flip
        self.zoom = check("m_step.augment.zoom", zoom)
        self.rotate = check("m_step.augment.rotate", rotate)
        self.hue = check("m_step.augment.hue", hue)
        self.saturation = check("m_step.augment.saturation", saturation)
        if not (flip or hue or saturation or zoom or rotate):
            raise UserError("m_step.augment changes nothing; set it to null")

    def check(self, shape: Sequence[int]) -> None:
        """Refuses images that have no colours, or no two axes, to change.

        Arguments:
            shape: The shape of an image, (C, *S).

        Raises:
            UserError: If they are not RGB images, or no images (C, H, W).
        """
        for name, value in (("zoom", self.zoom), ("rotate", self.rotate)):
            if value and len(shape) != 3:
                raise UserError(
                    f"m_step.augment.{name}={value} needs images of shape (C, H, W), got "
                    f"{tuple(shape)}; set it to 0"
                )
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
        return self._moved(x) if self.zoom or self.rotate else x

    def _moved(self, x: Tensor) -> Tensor:
        """Returns images that are shrunk and rotated about their centre."""
        u = torch.rand(2, len(x), device=x.device)
        factor = 1 / (1 - self.zoom * u[0])
        angle = math.radians(self.rotate) * (2 * u[1] - 1)
        # Sides of unequal length: the grid is in units of half a side, rotations are in pixels.
        ratio = x.shape[2] / x.shape[3]
        matrix = torch.zeros(len(x), 2, 3, device=x.device)
        matrix[:, 0, 0] = matrix[:, 1, 1] = factor * angle.cos()
        turn = factor * angle.sin()
        matrix[:, 0, 1], matrix[:, 1, 0] = -turn * ratio, turn / ratio
        with torch.autocast(x.device.type, enabled=False):
            grid = affine_grid(matrix, list(x.shape), align_corners=False)
            return grid_sample(x, grid, "bicubic", padding_mode="border", align_corners=False)

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
