"""Evidence: log p(y) of one measurement, from a conditional denoiser and one of the prior.

For any x, and so for x̂ ~ p(x | y), Bayes' rule and the pointwise relation of information and
mean square error (Kong et al. 2023, arXiv 2302.03792) give

    log p(y) = log q(y | x̂) - ½ ∫ E_z [‖x̂ - d(x_γ)‖² - ‖x̂ - d(x_γ, y)‖²] dγ

with x_γ = x̂ + z / √γ, γ = (α/σ)², and the denoisers d(x_γ) ≈ E[x | x_γ] and
d(x_γ, y) ≈ E[x | x_γ, y]. Of a Gaussian prior N(0, I) all of it is known, coefficient by
coefficient of the basis in which y measures them with precisions p_j. Its denoisers leave the same
noise z in as those of any other prior where σ is small, and are what diffem's own are before the
network adds its part; the integral of the difference, which has little noise, is taken over log γ
in strata, from one noise z for all four denoisers.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffem.corruption import LinearGaussianChannel, Measurement, require
from diffem.denoiser import Conditioning, Denoiser
from diffem.denoiser.levels import level, times_at
from diffem.posterior.conditional import Conditional

STRATA = 8  # of log γ, for each x̂
VISIBLE = (0.15, 3.0)  # noise levels σ/α at which a map of surprise compares: of what is in images


class EvidenceEstimates(NamedTuple):
    """Estimates of log p(y), and what the prior would not have guessed of each measurement."""

    log_evidence: Tensor
    """log p(y) of the measured entries, (n, B), one estimate for each x̂; 0 where none are."""
    surprise: Tensor
    """γ (x̂ - E[x | x_γ])² of each entry, the mean over levels σ/α from 0.15 to 3, (B, *shape):
    what the prior would not have guessed."""


def estimate_evidence(
    posterior: Conditional, prior: Denoiser, measurement: Measurement, *, n: int
) -> EvidenceEstimates:
    """Returns estimates of log p(y), from the global generators.

    An estimate takes the sampler's evaluations, and 8 more of each denoiser. All are of one law,
    so that their mean is an estimate too, and their spread shows its error, but for that of the
    denoisers. Candidates (other channels, other runs) compare best from the same seed.

    Arguments:
        posterior: The posterior of x given y that the conditional denoiser defines.
        prior: A denoiser that takes no condition, on the same schedule.
        measurement: The measurements, (B, …).
        n: The number of estimates.

    Raises:
        UserError: If the channel's noise is not Gaussian or the channel is not linear.
    """
    channel = posterior.channel
    require(channel, LinearGaussianChannel, "the evidence of a measurement")
    assert isinstance(channel, LinearGaussianChannel)
    pair = _Pair(prior, posterior, measurement)
    logs, surprise = [], torch.zeros(len(measurement.y), *channel.shape)
    surprise = surprise.to(measurement.device)
    measured = channel.measured_mask(measurement.y, measurement.operator).flatten(1).any(dim=1)
    for _ in range(n):
        x = posterior.draw(measurement)
        integral, of_entries = pair.integrate(x)
        log = channel.log_likelihood(measurement, x).double() - integral / 2
        logs.append(torch.where(measured, log, 0.0))
        surprise += of_entries / n
    return EvidenceEstimates(torch.stack(logs), surprise)


class _Pair:
    """Both denoisers, and what y says.

    Arguments:
        prior: The denoiser of the prior.
        posterior: The posterior, with the conditional one.
        measurement: The measurement.
    """

    def __init__(self, prior: Denoiser, posterior: Conditional, measurement: Measurement) -> None:
        self.prior, self.denoiser = prior, posterior.denoiser
        self.condition = posterior.condition(posterior.channel, measurement)
        # What y measures of coefficients, also where the denoiser is not given it.
        self.measured = Conditioning()(posterior.channel, measurement)
        self.ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
        self.first, self.last = level(prior.schedule, self.ends).tolist()

    def integrate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the integral over γ for x, (B, *shape), and the surprise of each entry.

        Returns:
            The integral, (B,), float64; the surprise, (B, *shape).
        """
        total, surprise = self._of_gaussian(x), torch.zeros_like(x)
        width = (self.last - self.first) / STRATA
        places = torch.arange(STRATA) + torch.rand(STRATA, dtype=torch.float64)
        levels = self.first + width * places
        times = times_at(self.prior.schedule, levels, self.ends).float().to(x.device)
        low, high = VISIBLE
        visible = [low <= math.exp(-λ) <= high for λ in levels.tolist()]
        for λ, t, seen in zip(levels.tolist(), times, visible, strict=True):
            γ = math.exp(2 * λ)
            alone, difference = self._square_errors(x, t)
            total = total + 2 * γ * width * difference  # dγ = 2 γ dλ
            if seen:
                surprise = surprise + γ * alone / sum(visible)
        return total, surprise

    def _square_errors(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both denoisers' errors at a time.

        Returns:
            (x - d(x_γ))²; and ‖x - d(x_γ)‖² - ‖x - d(x_γ, y)‖² less the same of the Gaussian case,
            (B,).
        """
        alpha, sigma = self.prior.schedule(t)
        noise = torch.randn_like(x)
        x_t = alpha * x + sigma * noise
        alone = (x - self.prior(x_t, t).mean).square()
        given = (x - self.denoiser(x_t, t, self.condition).mean).square()
        spectrum, p = self.measured.spectrum, self.measured.precision
        z, pull = spectrum.analyse(x), self._pull(x)
        γ = (alpha / sigma) ** 2
        root = γ.sqrt() * spectrum.analyse(noise)
        alone_gaussian = ((z - root) / (γ + 1)).square()
        given_gaussian = ((z - pull - root) / (γ + 1 + p)).square()
        difference = (alone - given - alone_gaussian + given_gaussian).double()
        return alone, difference.flatten(1).sum(dim=1)

    def _pull(self, x: Tensor) -> Tensor:
        """Returns p_j (y - x)_j of each coefficient, (B, *shape)."""
        measured = self.measured
        return measured.information - measured.precision * measured.spectrum.analyse(x)

    def _of_gaussian(self, x: Tensor) -> Tensor:
        """Returns the integral of the Gaussian case, (B,).

        With N(0, 1) for each coefficient it is 2 log p(x | y) / p(x).
        """
        p, z = self.measured.precision, self.measured.spectrum.analyse(x)
        entries = torch.log1p(p) + z.square() - (z - self._pull(x)).square() / (1 + p)
        return entries.double().flatten(1).sum(dim=1)
