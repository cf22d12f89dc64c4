"""A committed round, as the report gets it."""

from typing import Any, NamedTuple

from diffem.data.measurements import MeasurementSet
from diffem.em.blind import Estimates
from diffem.posterior import Posterior


class Round(NamedTuple):
    """What is known when a round is committed."""

    number: int
    """The round k; 0 is the init."""
    posterior: Posterior
    """The posterior that its reconstructions were drawn from; or were due to be, where the guard
    of E-steps kept those of the round before."""
    measurements: MeasurementSet
    """The measurements, under the channel as it was assumed or learned."""
    costs: dict[str, float | None]
    """Wall times in seconds, mean loss, optimiser steps and network function evaluations."""
    path: list[Estimates]
    """The estimates of the channel's parameters before its E-step, where they are learned."""

    def estimate(self) -> dict[str, Any]:
        """Returns the channel's learned parameters and the path to them, if there are any."""
        return {"estimate": self.path[-1], "estimate_path": self.path} if self.path else {}
