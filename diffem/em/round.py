"""A round, as the EM loop tells of it."""

from typing import Any, NamedTuple

from diffem.em.blind import Levels
from diffem.posterior import Posterior


class Round(NamedTuple):
    """What is known when a round is committed."""

    number: int
    """The round k; 0 is the init."""
    draw: Posterior
    """The posterior that made it."""
    e_step_seconds: float
    """Wall time of its E-step."""
    m_step_seconds: float
    """Wall time of the M-step before it; 0 for round 0."""
    loss: float | None
    """Mean loss of that M-step; None for round 0."""
    steps: int
    """Optimiser steps up to here."""
    evaluations: int
    """Network evaluations of E- and M-steps up to here, over all processes."""
    channel: list[Levels]
    """The estimates of the channel's levels before its E-step, where they are learned."""

    def costs(self) -> dict[str, float | None]:
        """Returns what the round cost, and its loss, as they stand in the summary."""
        return {
            "e_step_seconds": self.e_step_seconds,
            "m_step_seconds": self.m_step_seconds,
            "loss": self.loss,
            "optimizer_steps": self.steps,
            "network_evaluations": self.evaluations,
        }

    def estimate(self) -> dict[str, Any]:
        """Returns the channel's learned levels and the path to them, if there are any."""
        if not self.channel:
            return {}
        return {"estimate": self.channel[-1], "estimate_path": self.channel}
