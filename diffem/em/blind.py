"""Blind EM: parameters of the channel (blur width, noise level) that are unknown are learned too.

    x̂_i ~ p(x | y_i; φ)   for a subset of the measurements
    φ ← arg max Σ_i log q(y_i | x̂_i; φ)

a few times before each E-step: the M-step over the operator of Fast Diffusion EM (Laroche et al.
2023, arXiv 2309.00287), with whichever posterior the method has. At the maximum σ_y² is the
mean of (A_φ x̂ - y)² over the measured entries.

Measurements alone do not tell a blur from blurred images: what makes φ identifiable is what is
known of clean images (`method=fast_em`, `init=clean`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from diffem.corruption import LinearGaussianChannel, Measurement
from diffem.data.measurements import MeasurementSet
from diffem.posterior import Posterior, reconstruct
from diffem.runtime.progress import progress_bar
from diffem.runtime.ranges import check
from diffem.runtime.rng import Key

SEARCH = 2.0  # an operator's parameter moves at most by this factor in an iteration

Estimates = dict[str, float]
"""Estimated parameters of the channel by name."""


@dataclass(frozen=True)
class Blind:
    """How the channel is learned.

    Raises:
        UserError: If a number is out of its range.
    """

    iterations: int
    """Iterations before each E-step."""
    samples: int
    """Measurements that an iteration uses."""
    widen: float
    """M-steps draw ỹ with parameters within this factor of the estimate, >= 1, so that the
    denoiser is trained where the next iterations may lead."""

    def __post_init__(self) -> None:
        check("blind.iterations", self.iterations)
        check("blind.samples", self.samples)
        check("blind.widen", self.widen)

    def start(
        self, measurements: MeasurementSet, path: Sequence[Estimates] = ()
    ) -> MeasurementSet:
        """Returns the measurements under the channel that the loop starts, or resumes, with.

        Arguments:
            measurements: The measurements under the channel as it is configured.
            path: The estimates of the current round, if it has any.
        """
        channel = measurements.channel
        if not channel.learn:
            return measurements
        assert isinstance(channel, LinearGaussianChannel)
        estimates = path[-1] if path else {name: channel.known(name) for name in channel.learn}
        return measurements.under(channel.with_estimates(estimates, widen=self.widen))

    def fit(
        self,
        posterior: Posterior,
        measurements: MeasurementSet,
        *,
        key: Sequence[Key],
        device: torch.device,
    ) -> list[Estimates]:
        """Learns the channel's parameters and returns the estimates of each iteration.

        Arguments:
            posterior: The posterior.
            measurements: The measurements, at most `samples` of which are used, and the channel
                that the search starts from.
            key: The key of the draws.
            device: Where to sample.
        """
        channel = measurements.channel
        assert isinstance(channel, LinearGaussianChannel)
        measurement = measurements.select(slice(self.samples))
        path: list[Estimates] = []
        with progress_bar("channel", self.iterations, "iterations") as advance:
            for i in range(self.iterations):
                assumed = channel.assume(measurement)
                x = reconstruct(
                    posterior.under(channel),
                    assumed,
                    size=len(assumed.y),
                    key=(*key, i),
                    device=device,
                )
                path.append(maximise(channel, assumed, x))
                channel = channel.with_estimates(path[-1], widen=self.widen)
                advance("  ".join(f"{name} {value:.4f}" for name, value in path[-1].items()))
        return path


def maximise(channel: LinearGaussianChannel, measurement: Measurement, x: Tensor) -> Estimates:
    """Returns the parameters to learn at which log q(y | x) is largest, the others held.

    Operator parameters are searched for one by one within a factor of 2 of where they are.

    Arguments:
        channel: The channel.
        measurement: The measurements, (B, …).
        x: A reconstruction of each, (B, *shape).
    """
    found: Estimates = {name: channel.known(name) for name in channel.learn}

    def under(**changed: float) -> tuple[LinearGaussianChannel, Measurement]:
        trial = channel.with_estimates({**found, **changed})
        return trial, trial.assume(measurement)

    def loss(**changed: float) -> float:  # -log q(y | x)
        trial, assumed = under(**changed)
        return -float(trial.log_likelihood(assumed, x).double().sum())

    for name in (n for n in channel.learn if n != "noise"):
        centre, reach = math.log(found[name]), math.log(SEARCH)
        best = minimize_scalar(
            lambda log_value, name=name: loss(**{name: math.exp(log_value)}),
            bounds=(centre - reach, centre + reach),
            method="bounded",
            options={"xatol": 1e-4},
        )
        found[name] = math.exp(best.x)
    if "noise" in channel.learn:
        trial, assumed = under()
        found["noise"] = math.sqrt(float(trial.square_error(assumed, x)))
    return found
