"""Blind EM: parameters of the channel (a blur's width, the noise's) that are unknown are learned.

    x̂_i ~ p(x | y_i; φ)   for a subset of the measurements
    φ ← arg max Σ_i log q(y_i | x̂_i; φ)

a few times before each E-step: the M-step over the operator of Fast Diffusion EM (Laroche et al.
2023, arXiv 2309.00287), with whichever posterior the method has. At the maximum σ_y² of Gaussian
noise is the mean of (A_φ x̂ - y)² over the measured entries. The parameters of noise that depends
on the intensity, as photons and read-out noise, are searched for together: q is then a Gaussian of
the noise's mean and variance (`LinearChannel.log_likelihood`).

Measurements alone do not tell a blur from blurred images: what makes φ identifiable is what is
known of clean images (`method=fast_em`, `init=clean`). Photons and read-out noise are told apart
by how the variance grows with the intensity; a background adds to it what read-out noise does,
and is not learned.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from diffem.corruption import LinearChannel, LinearGaussianChannel, Measurement
from diffem.corruption.parameter import ChannelParameter
from diffem.data.measurements import MeasurementSet
from diffem.posterior import Posterior, reconstruct
from diffem.runtime.progress import progress_bar
from diffem.runtime.ranges import LARGEST, PARAMETER, RANGES, SMALLEST, check
from diffem.runtime.rng import Key

SEARCH = 2.0  # a parameter that is searched for moves at most by this factor in an iteration

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
        assert isinstance(channel, LinearChannel)
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
        assert isinstance(channel, LinearChannel)
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
                advance("  ".join(f"{name} {value:.4g}" for name, value in path[-1].items()))
        return path


def maximise(channel: LinearChannel, measurement: Measurement, x: Tensor) -> Estimates:
    """Returns the parameters to learn at which log q(y | x) is largest, the others held.

    Operator parameters are searched for one by one, then those of the noise together, each within
    a factor of 2 of where it is and within what the configuration allows it to be. The level of
    Gaussian noise is not searched for: the maximum is known.

    Arguments:
        channel: The channel.
        measurement: The measurements, (B, …).
        x: A reconstruction of each, (B, *shape).
    """
    found: Estimates = {name: channel.known(name) for name in channel.learn}

    for name in channel.learn:
        if name in channel.forward_operator.parameters:
            found[name] = _operator_parameter(channel.with_estimates(found), name, measurement, x)
    noise = [name for name in channel.learn if name not in channel.forward_operator.parameters]
    trial = channel.with_estimates(found)
    if noise and isinstance(trial, LinearGaussianChannel):
        found["noise"] = math.sqrt(float(trial.square_error(trial.assume(measurement), x)))
    elif noise:
        found |= _noise_parameters(trial, noise, measurement, x)
    return found


def _operator_parameter(
    channel: LinearChannel, name: str, measurement: Measurement, x: Tensor
) -> float:
    """Returns the value of one of the operator's parameters at which log q(y | x) is largest."""

    def loss(logarithm: float) -> float:
        trial = channel.with_estimates({name: math.exp(logarithm)})
        return -float(trial.log_likelihood(trial.assume(measurement), x).double().sum())

    best = minimize_scalar(
        loss,
        bounds=_bounds(channel.parameters[name]),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return math.exp(best.x)


def _noise_parameters(
    channel: LinearChannel, names: Sequence[str], measurement: Measurement, x: Tensor
) -> Estimates:
    """Returns the values of the noise's parameters at which log q(y | x) is largest."""
    y, operator, _ = channel.assume(measurement)
    measured = channel.measured_mask(y, operator)
    # The loss is differentiated by differences, which float32 would round away.
    mean, y, drawn = channel.apply(x, operator).double(), y.double(), measurement.noise.double()

    def values(logarithms: np.ndarray) -> Estimates:
        return {n: math.exp(v) for n, v in zip(names, logarithms, strict=True)}

    def loss(logarithms: np.ndarray) -> float:  # a mean: what is precise does not depend on B
        noise = channel.with_estimates(values(logarithms)).noise
        each = measured * noise.log_likelihood(y, mean, noise.assume(drawn))
        return -float(each.sum() / measured.sum())

    bounds = np.array([_bounds(channel.parameters[name]) for name in names])
    start = np.log([channel.known(name) for name in names]).clip(*bounds.T)
    best = minimize(loss, start, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12})
    return values(best.x)


def _bounds(parameter: ChannelParameter) -> tuple[float, float]:
    """Returns between what the logarithm of a parameter with a known value is searched for."""
    assert parameter.known is not None
    centre, reach = math.log(parameter.known), math.log(SEARCH)
    allowed = RANGES.get(parameter.name, PARAMETER)
    low, high = max(allowed.low, SMALLEST), min(allowed.high, LARGEST)
    return max(centre - reach, math.log(low)), min(centre + reach, math.log(high))
