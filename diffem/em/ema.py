"""Exponential moving average of a denoiser's weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from diffem.denoiser import Denoiser


class EMA(nn.Module):
    """θ̄ ← d θ̄ + (1 - d) θ with d = min(decay, (1 + n) / (10 + n)) at the n-th update.

    Arguments:
        denoiser: The denoiser whose weights are averaged.
        decay: The largest decay, in [0, 1).
    """

    updates: torch.Tensor

    def __init__(self, denoiser: Denoiser, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.denoiser = copy.deepcopy(denoiser).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, denoiser: Denoiser) -> None:
        """Takes in the weights of one optimiser step."""
        self.updates += 1
        n = int(self.updates)
        decay = min(self.decay, (1 + n) / (10 + n))
        for average, weight in zip(self.denoiser.parameters(), denoiser.parameters(), strict=True):
            average.lerp_(weight, 1 - decay)

    @contextmanager
    def scope(self) -> Iterator[Denoiser]:
        """Opens a scope for sampling with the averaged weights, without gradients."""
        with torch.no_grad():
            yield self.denoiser.eval()
        self.denoiser.train()  # Lightning warns of modules that start a fit in eval mode

    def restore(self, denoiser: Denoiser) -> None:
        """Sets a denoiser's weights to the average."""
        denoiser.load_state_dict(self.denoiser.state_dict())
