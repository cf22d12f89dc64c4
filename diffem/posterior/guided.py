"""Guided sampling: posteriors of an unconditional denoiser under a linear Gaussian channel."""

from abc import abstractmethod

import torch
from azula.sample import Sampler
from torch import Tensor

from diffem.corruption import LinearGaussianChannel, Measurement
from diffem.denoiser import Denoiser
from diffem.posterior.linear_problem import FlatDenoiser, LinearProblem
from diffem.posterior.posterior import DenoiserPosterior, SamplerFactory


class Guided(DenoiserPosterior):
    """Abstract posterior that a guided sampling process of vectors defines.

    Arguments:
        denoiser: An unconditional denoiser.
        channel: The channel.
        sampler: The sampler.
    """

    requires = LinearGaussianChannel

    def __init__(
        self, denoiser: Denoiser, channel: LinearGaussianChannel, *, sampler: SamplerFactory
    ) -> None:
        super().__init__(denoiser, channel)
        self.sampler = sampler

    @abstractmethod
    def process(self, denoiser: FlatDenoiser, problem: LinearProblem) -> Sampler:
        """Returns the guided process of a batch's problem."""

    def draw(self, measurement: Measurement) -> Tensor:
        """Draws one x ~ p(x | y) for each measurement, (B, *shape)."""
        channel = self.channel
        assert isinstance(channel, LinearGaussianChannel)
        flat = FlatDenoiser(self.denoiser, channel.shape)
        process = self.process(flat, LinearProblem(channel, measurement))
        size = len(measurement.y), torch.Size(channel.shape).numel()
        x = process(process.init(size, device=measurement.y.device))
        return x.unflatten(1, channel.shape)
