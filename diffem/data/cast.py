"""Casts: numbers as those of another dtype, and which of them it does not hold."""

import numpy as np


def cast(x: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """Returns numbers in a dtype, and how many of them were outside its range.

    Whole numbers are rounded, and those outside the range clipped to it.

    Arguments:
        x: Finite real numbers.
        dtype: A dtype of real numbers.
    """
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    low, high = float(limits.min), float(limits.max)
    if dtype.kind != "f":
        x = x.round()
    outside = int(((x < low) | (x > high)).sum())
    # The largest number of 64 bits rounds up to a float64 that 64 bits do not hold.
    rounded_up = dtype.kind != "f" and int(high) > limits.max
    largest = np.nextafter(high, 0) if rounded_up else high
    values = x.clip(low, largest).astype(dtype)
    values[x >= high] = limits.max
    return values, outside


def unscaled(
    x: np.ndarray, dtype: np.dtype, slope: float, intercept: float
) -> tuple[np.ndarray, int]:
    """Returns the whole numbers of a file whose values are slope · number + intercept.

    Arguments:
        x: The values.
        dtype: The dtype of the file's numbers; those outside its range are clipped to it.
        slope: The slope, not 0.
        intercept: The intercept.

    Returns:
        The numbers, and how many were clipped.
    """
    return cast((x.astype(np.float64) - intercept) / slope, dtype)
