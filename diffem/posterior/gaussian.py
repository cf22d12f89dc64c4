"""A Gaussian prior fitted to measurements by EM, and its posterior."""

import math
from collections.abc import Callable, Sequence

import torch
from azula.linalg.covariance import DPLRCovariance
from azula.linalg.solve import cg
from torch import Tensor

from diffem.corruption import Channel, LinearChannel, Measurement
from diffem.posterior.posterior import Posterior

VARIANCE_FLOOR = 1e-6  # a pixel that never varies keeps Σ invertible


class GaussianPosterior(Posterior):
    """Posterior of a Gaussian prior under a linear channel, exact where the noise is Gaussian too.

        x ~ N(μ, Σ),  Σ = diag(D) + V Vᵀ,   y = A x + σ_y ε

    A sample is a prior sample corrected by what its own measurement gets wrong (Matheron's rule;
    Papandreou & Yuille 2010), one linear system per measurement, solved by conjugate gradients:

        x = x' + Σ Aᵀ (A Σ Aᵀ + σ_y² I)⁻¹ (y - A x' - σ_y ε'),   x' ~ N(μ, Σ)

    Of noise whose variance depends on A x, σ_y² is the variance at A μ, its mean over the prior:
    the mean is then the best affine estimate of x (LMMSE), and samples have the covariance of its
    error.

    Arguments:
        mean: μ, (D,), float64.
        cov: Σ over (D,), float64.
        channel: The channel; images are flattened for azula's solver, which takes the last axis
            as the vector.
        iterations: The largest number of solver iterations (never more than entries of y).
    """

    requires = LinearChannel

    def __init__(
        self, mean: Tensor, cov: DPLRCovariance, channel: LinearChannel, iterations: int = 128
    ) -> None:
        self.prior_mean, self.cov = mean, cov
        self.channel = channel
        self.iterations = iterations

    def draw(self, measurement: Measurement) -> Tensor:
        """Draws one x ~ p(x | y) for each measurement, (B, *shape)."""
        n, dim = len(measurement.y), self.prior_mean.shape[0]
        device = measurement.y.device
        mean, cov = self.prior_mean.to(device), self.cov.to(device)
        assert isinstance(cov, DPLRCovariance)
        z = torch.randn(n, dim + cov.rank, dtype=torch.float64, device=device)
        x = mean + cov.D.sqrt() * z[:, :dim] + z[:, dim:] @ cov.V.mT
        noise = torch.randn(measurement.y.shape, dtype=torch.float64, device=device)
        return self._correct(x, measurement, noise)

    def mean(self, measurement: Measurement) -> Tensor:
        """Returns E[x | y], (B, *shape)."""
        mean = self.prior_mean.to(measurement.y.device).expand(len(measurement.y), -1)
        return self._correct(mean, measurement, torch.zeros_like(measurement.y).double())

    def under(self, channel: Channel) -> "GaussianPosterior":
        """Returns the posterior of the same prior under another linear channel."""
        assert isinstance(channel, LinearChannel)
        return GaussianPosterior(self.prior_mean, self.cov, channel, self.iterations)

    def _correct(self, x: Tensor, measurement: Measurement, noise: Tensor) -> Tensor:
        channel, cov = self.channel, self.cov.to(x.device)
        y, operator, levels = measurement.to(torch.float64)
        measured = channel.measured_mask(y, operator)

        def forward(x: Tensor) -> Tensor:
            return channel.apply(x.unflatten(1, channel.shape), operator)

        def adjoint(v: Tensor) -> Tensor:
            return channel.adjoint(v, operator).flatten(1)

        def system(v: Tensor) -> Tensor:  # (A Σ Aᵀ + σ_y² I) v
            v = v.unflatten(1, y.shape[1:])
            return (forward(cov(adjoint(v))) + var * v).flatten(1)

        var = channel.noise.variance(forward(self.prior_mean.to(x).expand_as(x)), levels)
        residual = measured * (y - forward(x) - var.sqrt() * noise)
        iterations = min(self.iterations, residual[0].numel())
        v = cg(system, residual.flatten(1), iterations=iterations).unflatten(1, y.shape[1:])
        x = x + cov(adjoint(v))
        return x.unflatten(1, channel.shape).float()


class UninformedGaussian(Posterior):
    """x ~ N(0, v I) whatever was measured: where EM starts under a channel that is not linear.

    Arguments:
        shape: The shape of x.
        variance: v.
    """

    def __init__(self, shape: Sequence[int], variance: float) -> None:
        self.shape = tuple(shape)
        self.variance = variance

    def draw(self, measurement: Measurement) -> Tensor:
        """Draws one x for each measurement, (B, *shape)."""
        size = (len(measurement.y), *self.shape)
        return math.sqrt(self.variance) * torch.randn(size, device=measurement.y.device)


def fit_gaussian(
    channel: LinearChannel,
    measurement: Measurement,
    *,
    rank: int,
    iterations: int,
    variance: float | None = None,
    advance: Callable[[], None] = lambda: None,
) -> GaussianPosterior:
    """Fits N(μ, diag(D) + V Vᵀ) to measurements by EM, from N(0, variance · I).

    E-step: the exact posterior mean of each measurement and one exact pair of posterior samples
    about it. M-step: their mean, and the leading principal components and residual variances of
    their covariance. Draws from the global generators.

    Arguments:
        channel: The channel.
        measurement: The measurements to fit, (N, …).
        rank: The rank of V; from D on, Σ is the full covariance.
        iterations: The number of EM iterations.
        variance: The variance to start from, > 0, which stays in directions that no measurement
            measures; None for that of the measurements themselves.
        advance: Called after each iteration.
    """
    dim = math.prod(channel.shape)
    mean = torch.zeros(dim, dtype=torch.float64, device=measurement.y.device)
    start = observed_variance(channel, measurement) if variance is None else variance
    cov = DPLRCovariance(torch.ones_like(mean) * start, mean.new_zeros(dim, 1))
    for _ in range(iterations):
        posterior = GaussianPosterior(mean, cov, channel)
        x, centre = posterior.draw(measurement), posterior.mean(measurement)
        # A sample and its mirror image: the mean is exact, or Monte Carlo errors would add up
        # over the iterations in directions that no measurement corrects.
        pair = torch.cat([x, 2 * centre - x]).flatten(1).double()
        mean = pair.mean(dim=0)
        cov = _covariance(pair, rank)
        advance()
    return GaussianPosterior(mean, cov, channel)


def observed_variance(channel: LinearChannel, measurement: Measurement) -> Tensor:
    """Returns the mean variance of a measured entry over measurements, less the noise's, ().

    Arguments:
        channel: The channel.
        measurement: The measurements, (N, …), N >= 2.
    """
    y, operator, levels = measurement.to(torch.float64)
    measured = channel.measured_mask(y, operator)
    count = measured.sum(dim=0).clamp(min=1)
    mean = (measured * y).sum(dim=0) / count
    noise = channel.noise.variance(mean.expand_as(y), levels)
    excess = measured * ((y - mean) ** 2 * (count / (count - 1).clamp(min=1)) - noise)
    return (excess.sum() / measured.sum()).clamp(min=VARIANCE_FLOOR)


def _covariance(x: Tensor, rank: int) -> DPLRCovariance:
    """Returns diag(D) + V Vᵀ of samples (N, D): the full covariance if the rank allows it."""
    n, dim = x.shape
    if rank < dim:
        cov = DPLRCovariance.from_data(x, rank=min(rank, n - 1))
        return DPLRCovariance(cov.D.clamp(min=VARIANCE_FLOOR), cov.V)
    # As torch.cov has it, which would make the host wait for the device to check its weights.
    centred = x.mT - x.mT.sum(dim=1, keepdim=True) / n
    value, vector = torch.linalg.eigh(centred @ centred.mT / n)
    root = vector * value.clamp(min=0).sqrt()
    return DPLRCovariance(torch.full_like(value, VARIANCE_FLOOR), root)
