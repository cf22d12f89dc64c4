"""Simulated measurements of images that a run's prior draws, and samples given them.

    x' ~ p(x),   y' ~ q(y | x'),   x'' ~ p(x | y')

If the sampler is that of the prior's posterior, x' is one more x''.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffem.corruption import Measurement
from diffem.data.measurements import MeasurementSet
from diffem.posterior.posterior import chunk_count
from diffem.result.result import Result
from diffem.runtime.progress import progress_bar
from diffem.runtime.rng import generator

KEY = "calibration"  # of all draws


@dataclass(frozen=True)
class Simulation:
    """Images of a run's prior, measured by its channel and reconstructed by its sampler."""

    x: Tensor
    """The images x', (B, *shape), on the scale of [-1, 1]."""
    lifted: Tensor
    """Their measurements y' on the grid of x, (B, *shape)."""
    samples: Tensor
    """The samples x'' given each of them, (n, B, *shape)."""

    @classmethod
    def of(cls, result: Result, n: int, count: int, *, seed: int | None) -> "Simulation":
        """Draws and measures images of the prior, and draws samples given the measurements.

        Arguments:
            result: The result.
            n: The number of samples of each measurement.
            count: The number B of measurements.
            seed: The seed; None for the run's.

        Raises:
            UserError: If there is no prior.
        """
        prior, sampling = result.known_prior(), result.posterior.sampling
        size = sampling.chunk_size
        images = []
        with progress_bar("images of the prior", chunk_count(count, size), "chunks") as advance:
            for start in range(0, count, size):
                images.append(prior.draw(min(size, count - start), KEY, start, seed=seed))
                advance()
        x = torch.cat(images)
        key = (sampling.chosen(seed), KEY, "measurements")
        measurement = result.channel.assume(result.channel.draw(x, generator(*key)))
        samples = draw_samples(result, measurement, n, seed=seed)
        return cls(x, result.channel.lift(measurement), samples)


def draw_samples(result: Result, measurement: Measurement, n: int, *, seed: int | None) -> Tensor:
    """Returns samples of the posteriors of measurements, (n, B, *shape), on the scale [-1, 1].

    Arguments:
        result: The result.
        measurement: The measurements, on that scale.
        n: The number of samples of each.
        seed: The seed; None for the run's.
    """
    posterior, measurements = result.posterior, MeasurementSet(measurement, result.channel)
    found, total = [], chunk_count(len(measurements), posterior.sampling.chunk_size)
    with progress_bar("samples", total, "chunks") as advance:
        for samples in posterior.draw(measurements, n, KEY, "samples", seed=seed):
            found.append(samples)
            advance()
    return torch.cat(found, dim=1)
