"""A backbone with which the denoiser is exact."""

import torch
from torch import Tensor, nn


class Zero(nn.Module):
    """The backbone that makes the denoiser exact for x ~ N(0, I), seen through a mask or noise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.weight * x
