"""Figures of a round that need no ground truth, on held-out measurements.

A figure `{name}_error` is the standard error of another.
"""

from typing import Any, NamedTuple

from torch import Tensor

from diffem.corruption import LinearChannel
from diffem.data.measurements import MeasurementSet
from diffem.metric import energy_test, residual_law
from diffem.metric.energy import MEASUREMENT_ENERGY_DISTANCE, MEASUREMENT_P
from diffem.runtime.rng import Key, generator

MEASUREMENTS = 1024  # the first ones, of which figures are computed at most


class RoundFigures(NamedTuple):
    """Figures of a round that need no ground truth."""

    scores: dict[str, float | None]
    """The figures by name, as rows of rounds hold them."""
    parts: dict[str, list[float]]
    """Those that are means over held-out measurements: the value of each."""


def round_figures(x: Tensor, heldout: MeasurementSet, *key: Key) -> RoundFigures:
    """Returns the figures of one reconstruction of each held-out measurement.

    Arguments:
        x: The reconstructions, (n, *shape), on the CPU, of the first n measurements; the first
            1,024 are used.
        heldout: The held-out measurements, under the channel as it is assumed or was learned.
        key: The key of the noise.
    """
    x, channel = x[:MEASUREMENTS], heldout.channel
    measurement = heldout.select(slice(len(x)))
    scores: dict[str, Any] = {}
    parts: dict[str, list[float]] = {}
    if isinstance(channel, LinearChannel):
        law = residual_law(channel, measurement, x, generator(*key, "residuals"))
        scores |= {} if law is None else law.scores()
    if len(x) >= MEASUREMENT_ENERGY_DISTANCE.images:
        name = MEASUREMENT_ENERGY_DISTANCE.name
        drawn = channel.draw(x, generator(*key, "recorrupted"))
        test = energy_test(
            channel.lift(measurement), channel.lift(drawn), generator(*key, "swaps")
        )
        scores |= {name: test.distance, f"{name}_error": test.error, MEASUREMENT_P.name: test.p}
        parts[name] = test.parts.tolist()
    return RoundFigures(scores, parts)
