"""A round, as the EM loop tells of it, and the meter of what rounds cost."""

import time
from typing import Any, NamedTuple

from torch import Tensor

from diffem.denoiser import Posterior
from diffem.em.blind import Levels


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


class Meter:
    """What the EM loop has spent, over all the processes that a run was carried on by.

    Attributes:
        seconds: Wall time of the E- and M-steps of finished rounds.
        evaluations: Network evaluations up to the last `count`.
        m_step: Wall time of the current M-step up to the last `tick`.
    """

    def __init__(self) -> None:
        self.seconds = self.m_step = 0.0
        self.evaluations = 0
        self._start = time.perf_counter()
        self._counter = 0  # the network's counter at the last `count`
        self._loss: Tensor | float = 0.0
        self._steps = 0

    def tick(self) -> float:
        """Returns the seconds since the last tick."""
        before, self._start = self._start, time.perf_counter()
        return self._start - before

    def count(self, counter: int, processes: int) -> None:
        """Counts the network evaluations since the last count; processes share them evenly.

        Arguments:
            counter: The counter of this process's networks.
            processes: The number of processes; 0 for evaluations that are not the method's own.
        """
        self.evaluations += (counter - self._counter) * processes
        self._counter = counter

    def add_loss(self, loss: Tensor) -> None:
        """Takes in the loss of a step, ()."""
        self._loss = self._loss + loss.detach()
        self._steps += 1

    def finish(self, e_step: float) -> tuple[float, float | None]:
        """Ends a round; returns the seconds of its M-step and its mean loss, None without one."""
        m_step, loss = self.m_step, float(self._loss) / self._steps if self._steps else None
        self.seconds += e_step + m_step
        self.m_step, self._loss, self._steps = 0.0, 0.0, 0
        return m_step, loss

    def state_dict(self) -> dict[str, float]:
        """Returns what has been spent."""
        return {
            "seconds": self.seconds,
            "m_step": self.m_step,
            "evaluations": self.evaluations,
            "loss": float(self._loss),
            "steps": self._steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        self.seconds, self.m_step = state_dict["seconds"], state_dict["m_step"]
        self.evaluations = state_dict["evaluations"]
        self._loss, self._steps = state_dict["loss"], state_dict["steps"]
