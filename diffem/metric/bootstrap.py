"""The bootstrap: the standard error of a figure from how it varies over resampled measurements."""

import torch
from torch import Generator, Tensor

RESAMPLINGS = 200  # the standard error is known to 5 %


def draw_weights(n: int, generator: Generator) -> Tensor:
    """Returns how often each of n measurements is drawn, in each of 200 resamplings, (200, n).

    Arguments:
        n: The number of measurements.
        generator: The source of all randomness, on the CPU.

    Returns:
        Whole numbers of sum n in each row, float64.
    """
    drawn = torch.randint(n, (RESAMPLINGS, n), generator=generator)
    ones = torch.ones(drawn.shape, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, drawn, ones)


def standard_error(values: Tensor) -> float | None:
    """Returns the standard error of the mean of values, (N,), of which NaN are left out.

    It is what the bootstrap tends to; None of fewer than two values.
    """
    finite = values[~values.isnan()].double()
    return float(finite.std() / len(finite) ** 0.5) if len(finite) > 1 else None
