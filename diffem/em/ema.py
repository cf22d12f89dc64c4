"""Exponential moving average of a denoiser's weights, by torch's AveragedModel."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from diffem.denoiser import Denoiser

Tensors = tuple[Tensor, ...] | list[Tensor]


def ema(denoiser: Denoiser, decay: float) -> AveragedModel:
    """Returns θ̄ ← d θ̄ + (1 - d) θ with d = min(decay, (1 + n) / (10 + n)) at the n-th update.

    Arguments:
        denoiser: The denoiser whose weights are averaged.
        decay: The largest decay, in [0, 1).
    """
    average = AveragedModel(denoiser, multi_avg_fn=warmed_up(decay)).requires_grad_(False)
    average.n_averaged.fill_(1)  # the start counts: at 0 torch would replace it by the first step
    return average


def warmed_up(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Returns the update of the average, in place, at the n-th step."""

    @torch.no_grad()
    def update(average: Tensors, weights: Tensors, n: Tensor | int) -> None:
        rate = 1 - min(decay, (1 + int(n)) / (10 + int(n)))
        for mean, weight in zip(average, weights, strict=True):
            mean.lerp_(weight, rate)

    return update
