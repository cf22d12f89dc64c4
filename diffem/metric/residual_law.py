"""The law of residuals of reconstructions, standardised by the noise; it needs no ground truth.

If x̂ ~ p(x | y) under the true prior, y given x̂ has the law of the channel, so that
r = (y - A x̂) / √V[y | x̂] are the noise's own standardised values: independent of one another,
with its law in each entry and, since an orthonormal transform keeps white noise white, of unit
variance at each frequency. χ² sees their mean square alone.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from diffem.corruption import LinearChannel, LinearGaussianChannel, Measurement
from diffem.corruption.basis import HartleyBasis
from diffem.metric.bootstrap import draw_weights
from diffem.metric.score import Score

RESIDUAL_KS = Score(
    "residual_ks", "residuals' distance from the noise's law", better="lower", detail=True
)
RESIDUAL_PIXEL = Score(
    "residual_pixel", "χ² of the worst pixel (expected < 1)", digits=2, detail=True
)
RESIDUAL_FREQUENCY = Score(
    "residual_frequency", "χ² of the worst frequency (expected < 1)", digits=2, detail=True
)
FRESH = 4  # draws of the noise for each residual, with which the residuals are compared
GRID = 256  # values at which laws are compared by the bootstrap
CHANCE = 0.05  # how often the worst entry of a true posterior exceeds 1


class ResidualLaw(NamedTuple):
    """How the residuals of some reconstructions differ from the noise."""

    ks: float
    """The Kolmogorov-Smirnov distance between the laws of residuals and of fresh noise, in
    [0, 1]."""
    ks_error: float
    """Its standard error, by bootstrap over measurements."""
    pixel: float
    """The largest deviation of a pixel's χ² from what is expected, by the end of the range that 95
    of 100 true posteriors stay in."""
    frequency: float | None
    """The same of the frequencies; None unless all entries of an image are measured."""

    def scores(self) -> dict[str, float | None]:
        """Returns the scores by name, as rows of rounds hold them."""
        scores = {RESIDUAL_KS.name: self.ks, f"{RESIDUAL_KS.name}_error": self.ks_error}
        scores[RESIDUAL_PIXEL.name] = self.pixel
        return scores | {RESIDUAL_FREQUENCY.name: self.frequency}


def residual_law(
    channel: LinearChannel, measurement: Measurement, x: Tensor, generator: Generator
) -> ResidualLaw | None:
    """Compares the residuals of reconstructions with the noise.

    Arguments:
        channel: The channel.
        measurement: The measurements, (B, …), on the CPU.
        x: One reconstruction of each, (B, *shape), on the CPU.
        generator: The source of all randomness, on the CPU.

    Returns:
        The comparison; None if nothing was measured.
    """
    y, operator, noise = measurement
    mean, measured = channel.apply(x, operator), channel.measured_mask(y, operator) > 0
    if not measured.any():
        return None
    std = channel.noise.variance(mean, noise).sqrt()
    fresh = torch.stack([channel.noise.draw(mean, noise, generator) for _ in range(FRESH)])
    residual = torch.where(measured, (y - mean) / std, 0).double()
    fresh = torch.where(measured, (fresh - mean) / std, 0).double()
    ks, error = _ks(residual, fresh, measured, generator)
    spread = 2.0  # V[r²] of a normal r
    if not isinstance(channel, LinearGaussianChannel):
        spread = float(fresh[:, measured].square().var().clamp(min=1e-6))
    frequency = None
    if bool(measured.all()) and residual.ndim >= 3:
        waves = HartleyBasis(tuple(range(2, residual.ndim))).analyse(residual)
        # A wave is a sum of many entries: normal, whatever the noise.
        frequency = _worst(waves, torch.ones_like(measured), 2.0)
    return ResidualLaw(ks, error, _worst(residual, measured, spread), frequency)


def _ks(
    residual: Tensor, fresh: Tensor, measured: Tensor, generator: Generator
) -> tuple[float, float]:
    """Returns sup |F - F'| of the laws of residuals and fresh noise, and its standard error."""
    own = residual[measured]
    values = torch.cat([own, fresh[:, measured].flatten()])
    order = values.argsort()
    step = torch.full_like(values, -1 / (len(values) - len(own)))
    step[: len(own)] = 1 / len(own)
    gap = step[order].cumsum(0)
    # Equal values, as counts of photons are, are one step.
    ends = values[order].diff(append=values.new_full((1,), torch.inf)) > 0
    # For the error the laws are compared at some of the values.
    grid = values[order][:: -(-len(values) // GRID)].contiguous()
    row = torch.arange(len(residual)).reshape(-1, *(1,) * (residual.ndim - 1)).expand_as(residual)
    count = torch.zeros(2, len(residual), len(grid) + 1, dtype=torch.float64)
    for law, x in enumerate((residual[None], fresh)):
        for each in x:
            place = torch.searchsorted(grid, each[measured].contiguous())
            count[law].index_put_(
                (row[measured], place), torch.ones((), dtype=torch.float64), accumulate=True
            )
    both = draw_weights(len(residual), generator) @ count.cumsum(dim=2)
    ecdf = both / both[..., -1:].clamp(min=1)
    resampled = (ecdf[0] - ecdf[1]).abs().amax(dim=1)
    return float(gap[ends].abs().max()), float(resampled.std())


def _worst(residual: Tensor, measured: Tensor, spread: float) -> float:
    """Returns the largest deviation of an entry's χ² over samples, by its expected range.

    χ² with n degrees of freedom is brought to N(0, 1) by its cube root (Wilson & Hilferty 1931).

    Arguments:
        residual: Standardised residuals, (B, *M), 0 where nothing was measured.
        measured: Where something was, (B, *M).
        spread: V[r²], 2 of a normal r: another has as many degrees of freedom as give its.
    """
    count = measured.sum(dim=0).flatten()
    seen = count > 0
    n = count[seen] * 2.0 / spread
    mean_square = residual.square().sum(dim=0).flatten()[seen] / count[seen]
    step = 2 / (9 * n)
    deviation = (mean_square.pow(1 / 3) - (1 - step)) / step.sqrt()
    # P(max |z| < end) = 1 - CHANCE of as many independent normal z.
    within = (1 - CHANCE) ** (1 / len(n))
    end = math.sqrt(2) * float(torch.special.erfinv(torch.tensor(within, dtype=torch.float64)))
    return float(deviation.abs().max()) / end
