"""Scores of reconstructions: a metric of each, and what a run reports of them."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from diffem.data.measurements import MeasurementSet
from diffem.metric import Metric


def compute(
    metric: Metric,
    x: Tensor,
    measurements: MeasurementSet,
    rows: slice,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Returns a metric of each reconstruction, (n,).

    Arguments:
        metric: The metric.
        x: One reconstruction of each measurement, (n, *shape), on the CPU.
        measurements: The measurements.
        rows: Which of the measurements were reconstructed.
        device: Where to compute it.

    Returns:
        Its values, on the CPU; of float32 numbers, whatever the device's default for convolutions.
    """
    target = torch.device(device)
    measurement = measurements.select(rows)
    # A metric that needs the truth is left out of a run without it.
    truth = x if measurements.truth is None else measurements.truth[rows]
    with torch.autocast(target.type, enabled=False), _exact_convolutions():
        values = metric.compute(
            x.to(target), truth.to(target), measurements.channel, measurement.to(target)
        )
    return values.cpu()


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Opens a scope in which no convolution is of 10 bits (TF32), the default on a GPU.

    SSIM's variances are differences of nearly equal numbers.
    """
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


def mean_of(values: Tensor) -> float | None:
    """Returns the mean of a metric over the reconstructions for which it is defined, if any."""
    mean = float(values.double().nanmean())
    return mean if math.isfinite(mean) else None


def left_out(values: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Returns how many reconstructions are left out of the mean of each metric.

    Those are the ones for which it is not defined, as χ² of a measurement of which nothing was
    measured.

    Arguments:
        values: Each metric's values, (N,), by its name.

    Returns:
        `{"left_out": {name: count}}`; nothing if no reconstruction is left out.
    """
    counts = {name: int(value.isnan().sum()) for name, value in values.items()}
    found = {name: count for name, count in counts.items() if count}
    return {"left_out": found} if found else {}
