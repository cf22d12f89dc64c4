"""Energy distance of two laws: 2 E‖a - b‖ - E‖a - a'‖ - E‖b - b'‖, 0 if they are the same."""

import torch
from torch import Tensor

from diffem.metric.score import Score

MEASUREMENT_ENERGY_DISTANCE = Score(
    "measurement_energy_distance",
    "measurement energy distance",
    digits=None,
    better="lower",
    images=2,
)


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
