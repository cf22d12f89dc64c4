"""Energy distance: 2 E‖a - b‖ - E‖a - a'‖ - E‖b - b'‖ of two laws, 0 if they are the same."""

import torch
from torch import Tensor


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Returns an estimate without bias, which may be below 0 where the laws are close.

    Székely & Rizzo (2013). The i-th pair of a and b need not be independent: it is left out.

    Arguments:
        a: Samples, (N, *shape), N >= 2.
        b: As many samples of the other law, (N, *shape).
    """
    a, b = (x.flatten(1).double() for x in (a, b))
    return 2 * _mean(a, b) - _mean(a, a) - _mean(b, b)


def _mean(a: Tensor, b: Tensor) -> float:
    """Returns the mean distance over all pairs but the i-th of a with the i-th of b."""
    distance = torch.cdist(a, b)
    n = len(distance)
    return float((distance.sum() - distance.trace()) / (n * (n - 1)))
