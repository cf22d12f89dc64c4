"""Energy distance of two laws: 2 E‖a - b‖ - E‖a - a'‖ - E‖b - b'‖, 0 if they are the same."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from diffem.metric.bootstrap import draw_weights
from diffem.metric.score import Score

MEASUREMENT_ENERGY_DISTANCE = Score(
    "measurement_energy_distance",
    "measurement energy distance",
    digits=None,
    better="lower",
    images=2,
)
MEASUREMENT_P = Score("measurement_p", "p of measurements drawn again", images=2, detail=True)
HIDDEN_ENTRIES = Score(
    "hidden_entries",
    "energy score of hidden parts",
    heading="hidden",
    digits=4,
    better="lower",
)
HIDDEN_MSE = Score(
    "hidden_mse",
    "mean squared error at hidden parts",
    digits=None,
    better="lower",
    detail=True,
)
SWAPS = 999  # random choices of pairs to swap: the smallest p-value is 1/1000


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Returns an unbiased estimate of the energy distance; it can be negative for close laws.

    Székely & Rizzo (2013). a_i and b_i may depend on each other: such pairs are left out.

    Arguments:
        a: Samples, (N, *shape), N >= 2.
        b: As many samples of the other law, (N, *shape).
    """
    a, b = (x.flatten(1).double() for x in (a, b))
    return 2 * _mean_distance(a, b) - _mean_distance(a, a) - _mean_distance(b, b)


def _mean_distance(a: Tensor, b: Tensor) -> float:
    """Returns the mean of ‖a_i - b_j‖ over i ≠ j."""
    distance = torch.cdist(a, b)
    n = len(distance)
    return float((distance.sum() - distance.trace()) / (n * (n - 1)))


class EnergyTest(NamedTuple):
    """The energy distance of two sets of samples, and how much of it is chance."""

    distance: float
    """The unbiased estimate, as of `energy_distance`."""
    error: float
    """Its standard error, by bootstrap over the pairs."""
    p: float
    """The probability of a distance at least as large if the laws are the same."""
    parts: Tensor
    """The part of each pair, (N,), of which the distance is the mean."""

    def to_plain(self) -> dict[str, float]:
        """Returns it in plain types, with the number of pairs in place of their parts."""
        return {
            "distance": self.distance, "error": self.error, "p": self.p, "pairs": len(self.parts)
        }  # fmt: skip


def energy_test(a: Tensor, b: Tensor, generator: Generator) -> EnergyTest:
    """Tests whether two sets of samples have one law, where a_i and b_i may depend on each other.

    Under the hypothesis (a_i, b_i) has the law of (b_i, a_i), so each pair is swapped with
    probability ½. For a measurement y and one that is drawn again from its reconstruction it is
    exact: if x̂ ~ p(x | y) under the true prior, (y, ỹ) and (ỹ, y) have the same law. Permuting all
    2N samples would break the dependence within pairs, and the p-values would be too large. It is
    exact for independent samples too.

    Arguments:
        a: Samples, (N, *shape), N >= 2.
        b: As many samples of the other law, (N, *shape).
        generator: The source of all randomness, on the CPU.
    """
    a, b = (x.flatten(1).double().cpu() for x in (a, b))
    across = torch.cdist(a, b)
    # A swap of pair i changes the sign of row and column i, and nothing else.
    excess = across + across.T - torch.cdist(a, a) - torch.cdist(b, b)
    excess.fill_diagonal_(0)
    n = len(a)
    excess /= n - 1
    parts = excess.sum(dim=1)
    distance = parts.mean()
    signs = 2.0 * torch.randint(2, (SWAPS, n), generator=generator).double() - 1
    swapped = ((signs @ excess) * signs).mean(dim=1)
    # Equal up to rounding counts: with few pairs some choices swap none, or all.
    reached = int((swapped >= distance - 1e-12 * excess.abs().sum() / n).sum())
    weights = draw_weights(n, generator)
    resampled = ((weights @ excess) * weights).mean(dim=1)
    return EnergyTest(float(distance), float(resampled.std()), (1 + reached) / (1 + SWAPS), parts)
