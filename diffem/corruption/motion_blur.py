"""Motion blur: A x = the mean of x along a straight line."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from diffem.corruption.convolution import Convolution
from diffem.corruption.operator import constant_map
from diffem.corruption.parameter import ChannelParameter, assume_each
from diffem.runtime.errors import UserError


class MotionBlur(Convolution):
    """Averages an image along a line of the sample's own length and direction.

    The line's points are spread over the four pixels around each (bilinear weights), so that the
    direction may be any; borders are periodic.

    Arguments:
        shape: The shape of x, (C, H, W).
        length: The line's length in pixels, > 0, or a range [low, high].
        angle: The direction in degrees from the row axis, counter-clockwise, in (0, 180], or a
            range [low, high]: [1e-3, 180] draws any direction.

    Raises:
        UserError: If the images have not two axes, or the line is longer than their shorter side.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        length: float | Sequence[float],
        angle: float | Sequence[float],
    ) -> None:
        super().__init__(tuple(shape))
        if len(self.shape) != 3:
            raise UserError(
                f"corruption=motion_blur needs images of shape (C, H, W), got {self.shape}; use "
                "corruption=blur"
            )
        self.length = ChannelParameter.of("corruption.length", length)
        self.angle = ChannelParameter.of("corruption.angle", angle)
        if self.length.bounds[1] > min(self.shape[1:]):
            raise UserError(
                f"corruption.length must be at most {min(self.shape[1:])}, the shorter side of "
                f"images of shape {self.shape}, got {length}"
            )

    @property
    def parameters(self) -> dict[str, ChannelParameter]:
        return {"length": self.length, "angle": self.angle}

    def draw(self, n: int, generator: Generator) -> Tensor:
        low, high = self.angle.bounds
        u = torch.rand(n, generator=generator, device=generator.device)
        angle = low + u * (high - low)  # every direction alike, where `draw` would prefer small
        return torch.stack([self.length.draw(n, generator), angle], dim=1)

    def assume(self, operator: Tensor) -> Tensor:
        return assume_each(self.parameters, operator)

    def fault(self, operator: Tensor) -> str | None:
        length, angle = operator.unbind(dim=1)
        turned = torch.where(angle == 0, 180.0, angle)  # the same direction, above 0
        return self.length.fault(length) or self.angle.fault(turned)

    def kernel(self, operator: Tensor) -> Tensor:
        length, angle = operator[:, 0], operator[:, 1] * (math.pi / 180)
        n, (height, width) = len(operator), self.shape[1:]
        # Two points a pixel: the mean over bilinear weights of these is the line.
        points = 2 * math.ceil(self.length.bounds[1]) + 1
        t = torch.linspace(-0.5, 0.5, points, device=operator.device) * length[:, None]
        row, column = -t * angle.sin()[:, None], t * angle.cos()[:, None]
        kernel = operator.new_zeros(n, height, width)
        sample = torch.arange(n, device=operator.device)[:, None].expand(-1, points)
        for down in (0, 1):
            for right in (0, 1):
                r, c = row.floor() + down, column.floor() + right
                weight = (1 - (row - r).abs()) * (1 - (column - c).abs()) / points
                index = (sample, (r.long() % height), (c.long() % width))
                kernel.index_put_(index, weight, accumulate=True)
        return kernel[:, None]

    def maps(self, y: Tensor, operator: Tensor) -> list[Tensor]:
        # The direction by its double angle: 0 and 180 degrees are one.
        double = operator[:, 1] * (math.pi / 90)
        seen = (operator[:, 0] / max(self.shape[1:]), double.cos(), double.sin())
        return [constant_map(value, y) for value in seen]
