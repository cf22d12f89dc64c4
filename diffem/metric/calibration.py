"""Calibration of a posterior: are its samples as far from x as they are from one another?

If x and n samples x_1, …, x_n of p(x | y) are given for many y, then under the right posterior x
is one more sample: for each y the n + 1 images can be exchanged. So the rank of f(x, y) among the
f(x_i, y) is uniform for any f (simulation-based calibration, Talts et al. 2018, arXiv 1804.06788).
Here f is

    random projections, the mean and the mean square of x     which see a bias and a wrong spread
    the distance of x from the lifted y                       which sees a sampler that ignores y

The last one is TARP (Lemos et al. 2023, arXiv 2302.03026), whose reference points must depend on
y: ranks of functions of x alone are uniform for a sampler of the prior too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from diffem.metric.bootstrap import draw_weights, standard_error

PROJECTIONS = 16
DISTANCE = "distance to y"
REPLICATES = 999  # exchanges that give p-values: the smallest is 1/1000
LEVELS = (0.5, 0.9)
BINS = 10
CURVE = 20  # steps of the TARP curve
EXACT = 1e-9  # of statistics that are equal up to rounding


@dataclass(frozen=True)
class Calibration:
    """How well a posterior's samples are calibrated; pixels are those of x, ± standard errors."""

    measurements: int
    """The number B of measurements."""
    samples: int
    """The number n of samples of each."""
    p: Mapping[str, float]
    """p-values: of `ranks` of functions of x alone, of `tarp`, and of `all` together."""
    quantities: Mapping[str, float]
    """The p-value of the ranks of each quantity by itself."""
    histograms: Mapping[str, list[int]]
    """How many of x lie in each tenth of the samples, from the lowest on: of all pixels, of the
    projections together, and of each other quantity."""
    tarp: Mapping[str, list[float]]
    """The TARP curve: credibility `levels`, their `coverage`, and its standard `error`."""
    coverage: Mapping[str, tuple[float, float]]
    """How many pixels lie in the central intervals of 50 and 90 %, ± error."""
    crps: tuple[float, float]
    """The continuous ranked probability score of a pixel, ± error; lower is better."""
    spread: tuple[float, float]
    """(1 + 1/n) times the samples' variance by the square error of their mean, ± error: 1."""
    factor: tuple[float, float]
    """What to multiply the samples' deviations from their mean by for the right spread: 1."""
    maps: Mapping[str, Tensor] = field(repr=False, default_factory=dict)
    """Of each pixel, (*shape): the `coverage` at 90 %, the posterior's `std`, the `error`, which
    is the root mean square one of its mean."""

    def to_plain(self) -> dict[str, Any]:
        """Returns all but the maps, in plain types, as calibration_001.json holds it."""
        pairs = {"crps": self.crps, "spread": self.spread, "factor": self.factor}
        return {
            "measurements": self.measurements,
            "samples": self.samples,
            "p": dict(self.p),
            "quantities": dict(self.quantities),
            "histograms": dict(self.histograms),
            "tarp": dict(self.tarp),
            "coverage": {level: _pair(*found) for level, found in self.coverage.items()},
            **{name: _pair(*pair) for name, pair in pairs.items()},
        }


def calibrate(x: Tensor, samples: Tensor, reference: Tensor, generator: Generator) -> Calibration:
    """Returns how well samples of posteriors are calibrated.

    Arguments:
        x: One image of each measurement, (B, *shape), which the measurement was drawn from.
        samples: Samples given each measurement, (n, B, *shape), n >= 2.
        reference: An image that depends on y alone, (B, *shape): y on the grid of x.
        generator: The source of all randomness, on the CPU.
    """
    n, size = samples.shape[:2]
    shape = x.shape[1:]
    pool = torch.cat([x[None], samples]).flatten(2).double()
    u = _uniform(pool, generator)
    quantities = _quantities(pool, reference.flatten(1).double(), generator)
    ranks = torch.stack([_ranks(value, generator) for value in quantities.values()], dim=2)
    tests = _exchange(ranks, list(quantities), generator)
    covered = {level: ((u - 0.5).abs() <= level / 2).double() for level in LEVELS}
    spread_out = (ranks[0] + torch.rand(ranks[0].shape, generator=generator)) / (n + 1)
    uniform = {"pixels": u, "projections": spread_out[:, :PROJECTIONS]}
    for i, name in enumerate(quantities):
        if i >= PROJECTIONS:
            uniform[name] = spread_out[:, i]
    mean, variance = pool[1:].mean(dim=0), pool[1:].var(dim=0)
    error = (pool[0] - mean).square()
    spread, factor = _spread(variance.mean(dim=1), error.mean(dim=1), n, generator)
    score = _crps(pool).mean(dim=1)
    return Calibration(
        size,
        n,
        p={name: tests[name] for name in ("ranks", "tarp", "all")},
        quantities={name: tests[name] for name in quantities},
        histograms={
            name: torch.histc(value.flatten(), BINS, 0, 1).int().tolist()
            for name, value in uniform.items()
        },
        tarp=_tarp(uniform[DISTANCE]),
        coverage={
            f"{level:.0%}".removesuffix("%"): _mean(inside.mean(dim=1))
            for level, inside in covered.items()
        },
        crps=_mean(score),
        spread=spread,
        factor=factor,
        maps={
            "coverage": covered[LEVELS[-1]].mean(dim=0).reshape(shape),
            "std": variance.mean(dim=0).sqrt().reshape(shape),
            "error": error.mean(dim=0).sqrt().reshape(shape),
        },
    )


def _quantities(pool: Tensor, reference: Tensor, generator: Generator) -> dict[str, Tensor]:
    """Returns f(x, y) of each image, (1 + n, B), by name."""
    weights = torch.randn(PROJECTIONS, pool.shape[2], generator=generator).double()
    projected = pool @ weights.T
    found = {f"projection {i}": projected[..., i - 1] for i in range(1, PROJECTIONS + 1)}
    found["mean"] = pool.mean(dim=2)
    found["mean square"] = pool.square().mean(dim=2)
    found[DISTANCE] = (pool - reference).norm(dim=2)
    return found


def _ranks(value: Tensor, generator: Generator) -> Tensor:
    """Returns the rank of each of n + 1 values among them, (1 + n, B); ties in random order."""
    shuffled = torch.rand(value.shape, generator=generator).argsort(dim=0)
    order = shuffled.gather(0, value.gather(0, shuffled).argsort(dim=0, stable=True))
    return order.argsort(dim=0)


def _uniform(pool: Tensor, generator: Generator) -> Tensor:
    """Returns for each pixel a number in [0, 1) that is uniform if x is one more sample, (B, D).

    It is the rank of x, spread over the width of a rank, so that intervals of any level have
    exactly that probability whatever n is.
    """
    below, equal = (pool[1:] < pool[0]).sum(dim=0), (pool[1:] == pool[0]).sum(dim=0)
    return (below + torch.rand(below.shape, generator=generator) * (equal + 1)) / len(pool)


def _exchange(ranks: Tensor, names: Sequence[str], generator: Generator) -> dict[str, float]:
    """Returns p-values of all quantities, and together, by exchanging x with one of the samples.

    The exchange is exact for any statistic, with all dependence between the quantities. It is the
    Anderson-Darling statistic of each, and the largest of several.

    Arguments:
        ranks: The rank of each image among the n + 1 of its measurement, (1 + n, B, Q).
        names: The names of the Q quantities, of which the last is the distance to y.
        generator: The source of all randomness, on the CPU.
    """
    count, size, quantities = ranks.shape
    pick = torch.randint(count, (REPLICATES, size), generator=generator)
    pick = torch.cat([torch.zeros(1, size, dtype=pick.dtype), pick])
    column = torch.arange(size)
    offset = count * torch.arange(quantities)
    counts = torch.stack(
        [
            torch.bincount(
                (ranks[chosen, column] + offset).flatten(), minlength=count * quantities
            )
            for chosen in pick
        ]
    )
    statistic = _anderson_darling(counts.reshape(len(pick), quantities, count).double())

    def p(values: Tensor) -> float:
        reached = int((values[1:] >= values[0] - EXACT).sum())
        return (1 + reached) / (1 + REPLICATES)

    found = {name: p(statistic[:, i]) for i, name in enumerate(names)}
    found["ranks"] = p(statistic[:, :-1].amax(dim=1))
    found["tarp"] = found[DISTANCE]
    found["all"] = p(statistic.amax(dim=1))
    return found


def _anderson_darling(counts: Tensor) -> Tensor:
    """Returns A² of B ranks against the uniform law, (…), from the count of each, (…, n + 1).

    A² = -B - (1/B) Σ_i (2i + 1) (log u_i + log(1 - u_{B-1-i})) of sorted u: the factors 2i + 1 of
    equal ranks add up to a difference of squares.
    """
    total, levels = counts.sum(dim=-1, keepdim=True), counts.shape[-1]
    u = torch.arange(1, levels + 1, dtype=counts.dtype) / (levels + 1)
    up_to = counts.cumsum(dim=-1)
    low = up_to.square() - (up_to - counts).square()
    high = (total - up_to + counts).square() - (total - up_to).square()
    mean = (low * u.log() + high * (1 - u).log()).sum(dim=-1) / total[..., 0]
    return -mean - total[..., 0]


def _tarp(u: Tensor) -> dict[str, list[float]]:
    """Returns the TARP curve of the uniform ranks of distances, (B,)."""
    levels = torch.linspace(0, 1, CURVE + 1, dtype=torch.float64)
    coverage = (u[None] <= levels[:, None]).double().mean(dim=1)
    error = (levels * (1 - levels) / len(u)).sqrt()
    return {
        "levels": levels.tolist(), "coverage": coverage.tolist(), "error": error.tolist()
    }  # fmt: skip


def _crps(pool: Tensor) -> Tensor:
    """Returns E|x_i - x| - E|x_i - x_j| / 2 without bias, (B, D); Gneiting & Raftery (2007)."""
    x, samples = pool[0], pool[1:].sort(dim=0).values
    n = len(samples)
    # Σ over pairs i < j of sorted values x_j - x_i.
    weight = (2 * torch.arange(n, dtype=torch.float64) + 1 - n)[:, None, None]
    between = (weight * samples).sum(dim=0) / (n * (n - 1))
    return (samples - x).abs().mean(dim=0) - between


def _spread(
    variance: Tensor, error: Tensor, n: int, generator: Generator
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns the ratio of spread and error, and the factor that recalibrates, ± errors.

    E (x - x̄)² = (1 + 1/n) σ² for the mean x̄ of n samples. Samples that are scaled by s about
    their own mean have the variance s² σ², and the mean's own error stays σ² / n: the right s² is
    (E (x - x̄)² - σ² / n) / σ².

    Arguments:
        variance: The samples' variance of each measurement, (B,).
        error: The square error of their mean, (B,).
        n: The number of samples of each.
        generator: The source of all randomness, on the CPU.
    """
    weights = torch.cat(
        [torch.ones(1, len(error), dtype=torch.float64), draw_weights(len(error), generator)]
    )
    var, mse = weights @ variance, weights @ error
    ratio = (1 + 1 / n) * var / mse
    factor = ((mse / var - 1 / n).clamp(min=0)).sqrt()
    return tuple((float(each[0]), float(each[1:].std())) for each in (ratio, factor))  # type: ignore[return-value]


def _mean(values: Tensor) -> tuple[float, float]:
    """Returns the mean of values of measurements, ± its standard error."""
    error = standard_error(values)
    return float(values.mean()), math.nan if error is None else error


def _pair(value: float, error: float) -> dict[str, float | None]:
    """Returns a number and its error in plain types; what is not finite is None."""
    pair = {"value": value, "error": error}
    return {name: number if math.isfinite(number) else None for name, number in pair.items()}
